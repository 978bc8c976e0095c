import pytest

from evmamba_mm.datasets import make_digit_scenes

SETTINGS = dict(num_train=6, num_val=4, size=96, seed=3)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A small data set, made once; tests only read it."""
    pytest.importorskip('sklearn', reason='scikit-learn is not installed')
    return make_digit_scenes(tmp_path_factory.mktemp('data') / 'a', **SETTINGS)
