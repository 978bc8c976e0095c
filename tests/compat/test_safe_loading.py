import builtins
import codecs
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from evmamba_mm.compat import safe_loading
from evmamba_mm.compat.checkpoint_files import load_from_local

from .processes import run_python

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 6),
    reason='this torch loads every type by default',
)
TINY_RUN = Path(__file__).with_name('tiny_run.py')
LOAD = 'import sys, torch; torch.load(sys.argv[1])'


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory, libraries_python):
    """A folder in which mmengine's Runner has trained, without mends."""
    folder = tmp_path_factory.mktemp('run')
    run_python(TINY_RUN, folder, warm=libraries_python).lines()
    return folder


@pytest.fixture(scope='module')
def checkpoint(work_dir):
    return work_dir / 'epoch_1.pth'


def test_checkpoint_does_not_load_without_the_mend(
    checkpoint, libraries_python
):
    outcome = run_python('-c', LOAD, checkpoint, warm=libraries_python)
    outcome.assert_fault('Weights only load failed')


def test_checkpoint_loads_with_its_log_and_ema(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert {'state_dict', 'ema_state_dict', 'optimizer'} <= set(content)
    history = content['message_hub']['log_scalars']['train/loss']
    assert type(history) is HistoryBuffer
    assert len(history.data[0]) == 4
    assert history.statistics('mean') == history.data[0].mean()
    best = content['message_hub']['runtime_info']['best_score']
    assert isinstance(best, np.float32)


def test_allow_list_covers_the_checkpoint_and_no_more(checkpoint):
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)
    assert needed == []


def test_best_checkpoint_loads(work_dir):
    (best,) = work_dir.glob('best_error_*.pth')
    assert 'state_dict' in torch.load(best, weights_only=True)


def test_runner_resumes(checkpoint, tmp_path, libraries_python):
    command = (TINY_RUN, tmp_path, '--mend', '--resume', checkpoint)
    outcome = run_python(*command, warm=libraries_python)
    report = json.loads(outcome.lines()[-1])
    # Four iterations an epoch, those of the first from the checkpoint.
    assert (report['epoch'], report['iterations']) == (2, 8)


def test_runner_does_not_resume_without_the_mend(
    checkpoint, tmp_path, libraries_python
):
    command = (TINY_RUN, tmp_path, '--resume', checkpoint)
    outcome = run_python(*command, warm=libraries_python)
    outcome.assert_fault('Weights only load failed')


ARRAYS = {
    'float64': np.linspace(0, 1, 5),
    'int64': np.arange(5),
    'float32': np.ones((2, 3), np.float32),
    'bool': np.array([True, False]),
    'columns-first': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}
SCALARS = {
    'float64': np.float64(0.1),
    'float32': np.float32(0.1),
    'float16': np.float16(0.5),
    'int64': np.int64(-3),
    'uint8': np.uint8(200),
    'bool': np.bool_(True),
}


def numpy_1_names(path):
    """Writes the file as numpy 1 would have."""
    content = path.read_bytes()
    assert b'numpy._core.multiarray' in content
    path.write_bytes(content.replace(b'numpy._core', b'numpy.core'))


@pytest.mark.parametrize('numpy_1', [False, True], ids=['numpy2', 'numpy1'])
@pytest.mark.parametrize(
    'value',
    [*ARRAYS.values(), *SCALARS.values()],
    ids=[*(f'array-{k}' for k in ARRAYS), *(f'scalar-{k}' for k in SCALARS)],
)
def test_numpy_values_are_read_back(tmp_path, value, numpy_1):
    path = tmp_path / 'a.pth'
    # The older format is not compressed and has no checksums.
    torch.save([value], path, _use_new_zipfile_serialization=False)
    if numpy_1:
        numpy_1_names(path)
    (found,) = torch.load(path, weights_only=True)
    assert type(found) is type(value) and found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize('name', safe_loading.HISTORY_METHODS)
def test_methods_of_the_log_are_read_back(tmp_path, name):
    path = tmp_path / 'a.pth'
    torch.save(getattr(HistoryBuffer, name), path)
    found = torch.load(path, weights_only=True)
    assert found is getattr(HistoryBuffer, name)


class Call:
    """Pickles as a call, whose arguments may be calls too."""

    def __init__(self, function, *arguments):
        self.function = function
        self.arguments = arguments

    def __reduce__(self):
        return self.function, self.arguments


def attack_globals(command):
    """`system` by way of the globals of an allowed class's method."""
    init = Call(getattr, HistoryBuffer, '__init__')
    names = Call(getattr, init, '__globals__')
    np_module = Call(getattr, Call(getattr, names, 'get'), 'np')
    return Call(getattr, np_module, command)


class SubArray(np.ndarray):
    pass


ATTACKS = {
    'system': lambda command: Call(os.system, command),
    'eval': lambda command: Call(
        eval, f'__import__("os").system({command!r})'
    ),
    'getattr-globals': attack_globals,
    'getattr-init': lambda _: Call(getattr, HistoryBuffer, '__init__'),
    'getattr-class': lambda _: Call(getattr, HistoryBuffer, '__class__'),
    'getattr-subclasses': lambda _: Call(getattr, object, '__subclasses__'),
    'getattr-of-tensor': lambda _: Call(getattr, torch.zeros(1), 'min'),
    'getattr-of-instance': lambda _: Call(
        getattr, HistoryBuffer([1.0], [1]), 'min'
    ),
    'import': lambda _: Call(builtins.__import__, 'os'),
    'getattr-itself': lambda _: getattr,
    'array-of-objects': lambda command: np.array(
        [Call(os.system, command)], dtype=object
    ),
    'array-subclass': lambda _: np.zeros(2).view(SubArray),
    'scalar-of-bytes': lambda _: np.bytes_(b'abc'),
}
# Reading it does no harm: what torch gives is the stand-in.
HARMLESS = ('getattr-itself',)


@pytest.mark.parametrize('name', [k for k in ATTACKS if k not in HARMLESS])
def test_other_content_is_refused(tmp_path, name):
    path, trace = tmp_path / 'a.pth', tmp_path / 'trace'
    torch.save({'state_dict': {}, 'x': ATTACKS[name](f'touch {trace}')}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    assert not trace.exists()


def test_name_of_getattr_leads_to_the_stand_in(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(ATTACKS['getattr-itself'](''), path)
    found = torch.load(path, weights_only=True)
    assert found is not getattr
    with pytest.raises(pickle.UnpicklingError, match="'__init__'"):
        found(HistoryBuffer, '__init__')


def test_attack_works_where_loading_is_not_safe(tmp_path):
    """The attacks are real ones."""
    path, trace = tmp_path / 'a.pth', tmp_path / 'trace'
    torch.save(ATTACKS['system'](f'touch {trace}'), path)
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_mend_comes_back_after_a_clear():
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    safe_loading.apply()
    assert set(torch.serialization.get_safe_globals()) <= set(before)
    assert HistoryBuffer in torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_loaders_of_this_package_need_the_types_with_any_torch(
    checkpoint, monkeypatch
):
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    with monkeypatch.context() as patch:
        version = torch.torch_version.TorchVersion('2.5.1+cpu')
        patch.setattr(torch, '__version__', version)
        content = load_from_local(str(checkpoint), 'cpu')
    assert 'message_hub' in content
    # torch allows it itself from 2.6 on.
    assert codecs.encode in torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(before)
