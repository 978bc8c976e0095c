import logging

import pytest
import torch

from evmamba_mm.ops import selective_scan, ss2d_scan
from evmamba_mm.ops.scan import backend as backend_module
from evmamba_mm.ops.scan import cuda, mamba_scan
from evmamba_mm.ops.scan.backend import (
    ENVIRONMENT_VARIABLE,
    choose_backend,
    choose_map_backend,
)
from evmamba_mm.ops.scan.geometry import DIRECTIONS

from .scan_cases import map_parameters, scan_arguments

CPU, CUDA = torch.device('cpu'), torch.device('cuda', 1)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(backend_module, '_said', set())
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    logger = logging.getLogger('evmamba_mm')
    monkeypatch.setattr(logger, 'propagate', True)


@pytest.mark.parametrize(
    ('device', 'dtype', 'installed', 'expected'),
    [
        (CPU, torch.float32, True, 'torch'),
        (CUDA, torch.float32, True, 'mamba_ssm'),
        (CUDA, torch.float64, True, 'torch'),
        (CUDA, torch.float32, False, 'torch'),
    ],
)
def test_auto_asks_device_and_dtype(
    device, dtype, installed, expected, monkeypatch
):
    monkeypatch.setattr(
        backend_module, 'mamba_kernel_installed', lambda: installed
    )
    assert choose_backend('auto', device, dtype) == expected


def test_environment_variable_forces_and_argument_wins(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'naive')
    assert choose_backend('auto', CPU, torch.float32) == 'naive'
    assert choose_backend('torch', CPU, torch.float32) == 'torch'


def test_choice_is_logged_once(caplog):
    caplog.set_level(logging.INFO)
    for _ in range(3):
        choose_backend('auto', CPU, torch.float32)
    assert [r.message for r in caplog.records] == [
        "selective scan on cpu: using backend 'torch'"
    ]


def test_slow_path_on_a_gpu_is_a_warning_with_the_install_line(
    caplog, monkeypatch
):
    monkeypatch.setattr(
        backend_module, 'mamba_kernel_installed', lambda: False
    )
    choose_backend('auto', CUDA, torch.float32)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert mamba_scan.INSTALL_LINE in record.message


@pytest.mark.parametrize('name', ['cudnn', 'Torch', ''])
def test_unknown_name_lists_the_legal_ones(name):
    with pytest.raises(ValueError, match='auto, naive, torch, mamba_ssm'):
        choose_backend(name, CPU, torch.float32)


def test_unknown_name_in_the_environment_is_told_so(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'fast')
    with pytest.raises(ValueError, match=f"{ENVIRONMENT_VARIABLE}.*'fast'"):
        choose_backend('auto', CPU, torch.float32)


@pytest.mark.parametrize(
    ('device', 'dtype'), [(CPU, torch.float32), (CUDA, torch.float64)]
)
def test_forced_kernel_where_it_cannot_run(device, dtype):
    with pytest.raises(ValueError, match='needs CUDA tensors'):
        choose_backend('mamba_ssm', device, dtype)


def test_missing_kernel_raises_with_the_install_line(monkeypatch):
    monkeypatch.setattr(mamba_scan, '_EXTENSION', 'no_such_extension')
    arguments = scan_arguments(dtype=torch.float32)
    with pytest.raises(ImportError, match='pip install mamba-ssm'):
        mamba_scan.scan_mamba(**arguments, delta_softplus=True)


def test_environment_variable_reaches_the_scan(monkeypatch):
    arguments = scan_arguments()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'naive')
    naive = selective_scan(**arguments)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'torch')
    torch.testing.assert_close(selective_scan(**arguments), naive)
    choices = {said for said in backend_module._said if len(said) == 2}
    assert choices == {('naive', 'cpu'), ('torch', 'cpu')}


def test_a_choice_of_torch_does_not_hide_the_lack_of_a_kernel(
    monkeypatch, caplog
):
    monkeypatch.setattr(
        backend_module, 'mamba_kernel_installed', lambda: False
    )
    gpu = torch.device('cuda')
    for dtype in (torch.float64, torch.float32):
        assert choose_backend('auto', gpu, dtype) == 'torch'
    warnings = [r for r in caplog.records if r.levelname == 'WARNING']
    assert len(warnings) == 1


@pytest.fixture
def installed(monkeypatch):
    """Sets which kernels are installed, on a GPU that serves them."""

    def install(cuda_kernel, mamba_kernel):
        monkeypatch.setattr(cuda, 'device_served', lambda device: True)
        monkeypatch.setattr(cuda, 'compiler_installed', lambda: cuda_kernel)
        monkeypatch.setattr(
            backend_module, 'mamba_kernel_installed', lambda: mamba_kernel
        )

    return install


@pytest.mark.parametrize(
    ('cuda_kernel', 'mamba_kernel', 'expected', 'level', 'words'),
    [
        (True, True, 'cuda', 'INFO', "on cuda: using backend 'cuda'"),
        (False, True, 'mamba_ssm', 'INFO', "using backend 'mamba_ssm'"),
        (False, False, 'torch', 'WARNING', cuda.INSTALL_LINE),
    ],
)
def test_a_map_takes_the_fused_kernel_first(
    cuda_kernel, mamba_kernel, expected, level, words, installed, caplog
):
    caplog.set_level(logging.INFO)
    installed(cuda_kernel, mamba_kernel)
    for _ in range(2):
        assert choose_map_backend('auto', CUDA, torch.half) == expected
        # The sequences of the map are scanned by the chosen backend.
        if expected != 'cuda':
            choose_backend(expected, CUDA, torch.half)
    (record,) = caplog.records
    assert record.levelname == level
    assert words in record.message


@pytest.mark.parametrize(
    ('mamba_kernel', 'expected'), [(True, 'mamba_ssm'), (False, 'torch')]
)
def test_directions_that_the_kernel_lacks_give_one_warning(
    mamba_kernel, expected, installed, caplog
):
    caplog.set_level(logging.INFO)
    installed(True, mamba_kernel)
    for _ in range(2):
        name = choose_map_backend(
            'auto', CUDA, torch.half, geometry_fits=False
        )
        assert choose_backend(name, CUDA, torch.half) == expected
    (record,) = caplog.records
    assert record.levelname == 'WARNING'
    assert 'does not support these directions' in record.message
    assert (mamba_scan.INSTALL_LINE in record.message) is not mamba_kernel
    with pytest.raises(ValueError, match='default four directions only'):
        choose_map_backend('cuda', CUDA, torch.half, geometry_fits=False)


@pytest.mark.parametrize(
    'directions', [('rows',), ('rows',) * 5, DIRECTIONS[::-1]]
)
def test_forced_cuda_refuses_other_directions(directions):
    p = map_parameters(len(directions))
    with pytest.raises(ValueError, match='default four directions only'):
        ss2d_scan(
            torch.zeros(1, 4, 4, 4),
            **p,
            directions=directions,
            backend='cuda',
        )
