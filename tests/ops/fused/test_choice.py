import logging

import pytest
import torch

from evmamba_mm.ops.fused import choice
from evmamba_mm.ops.fused.choice import (
    ENVIRONMENT_VARIABLE,
    autocast_dtype,
    choose_fused,
)


class OnCuda:
    """Stands for a tensor on a GPU that need not be there."""

    device = torch.device('cuda', 1)

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(choice, '_said', set())
    monkeypatch.setattr(choice, 'triton_installed', lambda: True)
    monkeypatch.setattr(logging.getLogger('evmamba_mm'), 'propagate', True)
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)


@pytest.mark.parametrize(
    ('dtype', 'installed', 'expected'),
    [
        (torch.float32, True, 'triton'),
        (torch.float16, True, 'triton'),
        (torch.bfloat16, True, 'triton'),
        (torch.float64, True, 'torch'),
        (torch.float32, False, 'torch'),
    ],
    ids=['fp32', 'fp16', 'bf16', 'fp64', 'no-triton'],
)
def test_auto_on_a_gpu(dtype, installed, expected, monkeypatch):
    monkeypatch.setattr(choice, 'triton_installed', lambda: installed)
    assert choose_fused(OnCuda(dtype), 'auto') == expected


@pytest.mark.parametrize('interpret', ['0', '1'])
def test_auto_on_the_cpu_is_torch(interpret, monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', interpret)
    assert choose_fused(torch.ones(1), 'auto') == 'torch'


def test_environment_variable_forces_and_argument_wins(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'torch')
    assert choose_fused(OnCuda(), 'auto') == 'torch'
    assert choose_fused(OnCuda(), 'triton') == 'triton'


def test_forced_kernel_runs_on_the_cpu_by_the_interpreter(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert choose_fused(torch.ones(1), 'triton') == 'triton'


@pytest.mark.parametrize(
    ('x', 'message'),
    [
        (torch.ones(1), 'got a tensor on cpu'),
        (OnCuda(torch.float64), 'got torch.float64'),
    ],
    ids=['cpu', 'fp64'],
)
def test_forced_kernel_where_it_cannot_run(x, message, monkeypatch):
    with pytest.raises(ValueError, match=message):
        choose_fused(x, 'triton')
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'triton')
    with pytest.raises(ValueError, match=message):
        choose_fused(x, 'auto')


def test_forced_kernel_without_triton(monkeypatch):
    monkeypatch.setattr(choice, 'triton_installed', lambda: False)
    with pytest.raises(ImportError, match=choice.INSTALL_LINE):
        choose_fused(OnCuda(), 'triton')


def test_gpu_without_triton_is_one_warning(caplog, monkeypatch):
    monkeypatch.setattr(choice, 'triton_installed', lambda: False)
    for _ in range(3):
        choose_fused(OnCuda(), 'auto')
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert choice.INSTALL_LINE in record.message


@pytest.mark.parametrize('name', ['cuda', 'Triton', ''])
def test_unknown_name_lists_the_legal_ones(name):
    with pytest.raises(ValueError, match='auto, torch, triton'):
        choose_fused(torch.ones(1), name)


def test_unknown_name_in_the_environment_is_told_so(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, 'fast')
    with pytest.raises(ValueError, match=f"{ENVIRONMENT_VARIABLE}.*'fast'"):
        choose_fused(torch.ones(1), 'auto')


@pytest.mark.parametrize(
    ('dtype', 'lowered'),
    [
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.float64),
    ],
    ids=['fp32', 'fp16', 'fp64'],
)
def test_autocast_lowers_all_but_double(dtype, lowered):
    x = torch.ones(1, dtype=dtype)
    assert autocast_dtype(x) == dtype
    with torch.autocast('cpu', torch.bfloat16):
        assert autocast_dtype(x) == lowered
    with torch.autocast('cuda', torch.float16, enabled=False):
        assert autocast_dtype(x) == dtype


def test_both_are_traced_into_a_graph():
    @torch.compile(fullgraph=True, backend='eager')
    def function(x):
        y = x if choose_fused(x, 'auto') == 'torch' else x + 1
        return y.to(autocast_dtype(x))

    x = torch.ones(1)
    assert torch.equal(function(x), x)
    with torch.autocast('cpu', torch.bfloat16):
        assert function(x).dtype == torch.bfloat16
