import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import (
    depthwise_conv3x3,
    norm_gate_linear,
    split_linear,
)
from evmamba_mm.ops.fused.pixels import pixel_rows
from evmamba_mm.ops.fused.split_linear import _SplitLinear
from evmamba_mm.ops.fused.tiles import as_rows

from ..scan_cases import relative_error, value_and_gradients
from .kernel_cases import normal


def arguments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return dict(x=x, weight=weight)


def test_halves_are_those_of_one_product():
    values = arguments()
    left, right = split_linear(**values)
    torch.testing.assert_close(
        torch.cat([left, right], -1), F.linear(**values)
    )
    assert left.is_contiguous() and right.is_contiguous()


def test_written_gradient_equals_autograds():
    def written(x, weight):
        return torch.cat(_SplitLinear.apply(x, weight, x.dtype), -1)

    expected = value_and_gradients(F.linear, arguments())
    actual = value_and_gradients(written, arguments())
    assert relative_error(actual[0], expected[0]) < 1e-12
    for name in ('x', 'weight'):
        error = relative_error(actual[1][name], expected[1][name])
        assert error < 1e-12, name


@pytest.mark.parametrize('size', [(2, 3, 5), (1, 4, 1), (2, 1, 1)], ids=str)
@torch.no_grad()
def test_kernels_read_the_halves_of_one_product(size, device, monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    x = normal(*size, 6, dtype=torch.float32, device=device)
    weight = normal(32, 6, dtype=torch.float32, device=device)
    left, right = split_linear(x, weight)
    whole = F.linear(x, weight)
    assert torch.equal(torch.cat([left, right], -1), whole)
    # As they lie: no half is copied, neither as pixels nor as rows.
    for half in (left, right):
        assert pixel_rows(half)[0].data_ptr() == half.data_ptr()
        assert as_rows(half, (-1, 16)).data_ptr() == half.data_ptr()
    kernel, bias = normal(16, 1, 3, 3).to(x), normal(16).to(x)
    linear = normal(6, 16).to(x)

    def mixed(left, right, backend):
        monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', backend)
        y = depthwise_conv3x3(left, kernel, bias, 'silu')
        return norm_gate_linear(y, right, bias, bias, 1e-5, linear)

    expected = mixed(left.contiguous(), right.contiguous(), 'torch')
    for backend in ('torch', 'triton'):
        error = relative_error(mixed(left, right, backend), expected)
        assert error < 1e-5, backend
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'torch')
    assert all(half.is_contiguous() for half in split_linear(x, weight))


def test_gradients_take_contiguous_halves(device, monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    x = normal(2, 3, 5, 6, dtype=torch.float32, device=device)
    weight = normal(32, 6, dtype=torch.float32, device=device)
    halves = split_linear(x, weight.requires_grad_())
    assert all(half.is_contiguous() for half in halves)
