import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from . import quick_triton
from .quick_hosts import hurry
from .warm_python import WarmPython

# Without a GPU the Triton kernels run in Triton's interpreter. Triton reads
# this when it is imported, which anything may do.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'
    quick_triton.hurry()

hurry()

if 'PYTEST_XDIST_WORKER' in os.environ:
    # Each worker has one core to itself; more threads only get in the way.
    torch.set_num_threads(1)


# What `make quick` leaves out, by folder.
MARKS = {
    'kernels': ('ops/triton', 'fast'),
    'hosts': (
        *('apis', 'benchmark', 'compat', 'configs', 'data', 'demo'),
        'hooks',
        *('tools', 'test_packaging.py', 'test_registry.py'),
    ),
    'docs': ('docs',),
    'paper': ('paper', 'test_model_zoo.py'),
}


# Of the longest modules, so that none of them is left to one worker at last.
FIRST = (
    'ops/triton/test_shared_memory.py',
    *('export', 'docs', 'paper', 'backbones', 'tools', 'ops', 'fast'),
)


def pytest_configure(config):
    # It would start modules by the number of their tests, not by their time.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    tests = Path(__file__).parent

    def turn(item):
        place = item.path.relative_to(tests)
        return [not place.is_relative_to(folder) for folder in FIRST]

    items.sort(key=turn)
    for item in items:
        place = item.path.relative_to(tests)
        for mark, folders in MARKS.items():
            if any(place.is_relative_to(folder) for folder in folders):
                item.add_marker(mark)


def folder_from_environment(variable, content):
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f'{variable} is not set: it names a folder of {content}')
    if not Path(folder).is_dir():
        pytest.fail(f'{variable} is {folder!r}, which is no folder')
    return Path(folder)


@pytest.fixture(scope='session')
def reference_dir():
    """The folder of files made with the released model."""
    return folder_from_environment('EVMAMBA_REFERENCE', 'parity files')


@pytest.fixture(scope='session')
def data_dir():
    """The folder of small data sets, each a tar."""
    return folder_from_environment('EVMAMBA_DATA', 'data sets as tars')


@pytest.fixture(scope='session')
def warm_python(tmp_path_factory):
    """A Python that has imported this package and the toolboxes."""
    with WarmPython(tmp_path_factory.mktemp('warm')) as python:
        yield python


@pytest.fixture(scope='session')
def libraries_python(tmp_path_factory):
    """A Python that has imported what this package and the toolboxes need."""
    folder = tmp_path_factory.mktemp('libraries')
    with WarmPython(folder, 'libraries') as python:
        yield python


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """A folder with four images of two classes, and the config `toy.py`."""
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    import cv2

    folder = tmp_path_factory.mktemp('toy')
    config = Path(__file__).parent / 'toy_classifier.py'
    shutil.copy(config, folder / 'toy.py')
    for index in range(4):
        image = folder / 'images' / f'class{index % 2}' / f'{index}.png'
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), np.full((32, 32, 3), 60 * index, np.uint8))
    return folder


@pytest.fixture(autouse=True)
def no_default_scope():
    """Each test starts without the default scope that a Runner leaves."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True, scope='module')
def as_many_threads_anywhere():
    """What one thread sets, torch also gives to all that start later.

    Another number rounds otherwise, so tests of other modules would fail.
    """
    before = torch.get_num_threads()
    yield
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(torch.get_num_threads).result()
    assert (torch.get_num_threads(), later) == (before, before)


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(request):
    """Fills what torch.empty returns with NaN, in the tests of the ops.

    A cell that an op forgets to write then shows in the result.
    """
    tests = Path(__file__).parent
    if 'ops' not in request.path.relative_to(tests).parts:
        yield
        return
    # The fill has no effect outside of deterministic mode.
    fill_before = torch.utils.deterministic.fill_uninitialized_memory
    mode_before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill_before
    torch.set_deterministic_debug_mode(mode_before)


@pytest.fixture
def package_log(caplog):
    """Captures the package's logger, which does not hand on its records."""
    logger = logging.getLogger('evmamba_mm')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, 'evmamba_mm'):
        yield caplog
    logger.removeHandler(caplog.handler)
