import pytest

from evmamba_mm.datasets import make_digit_scenes


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Digit scenes for a handful of iterations; tests only read them."""
    pytest.importorskip('sklearn', reason='scikit-learn is not installed')
    return make_digit_scenes(
        tmp_path_factory.mktemp('data') / 'digits', num_train=16, num_val=8
    )
