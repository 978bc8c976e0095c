"""norm_gate_linear of ops/triton/linear.py."""

import pytest
import torch
import torch.nn.functional as F

from .cases import DTYPES, assert_close_to_reference, normal

SHAPES = {
    'one token': (1, 1, 1, 16),
    'odd': (2, 7, 9, 24),
    'wide': (1, 5, 3, 200),
    'empty': (0, 4, 4, 16),
}


@pytest.fixture
def kernel(device):
    from evmamba_mm.ops.triton.linear import norm_gate_linear

    def run(y, gate, weight, bias, linear):
        return norm_gate_linear(y, gate, weight, bias, 1e-5, linear, y.dtype)

    return run


def reference(y, gate, weight, bias, linear):
    compute = torch.promote_types(y.dtype, torch.float32)
    z = F.layer_norm(
        y.to(compute),
        weight.shape,
        weight.to(compute),
        bias.to(compute),
        1e-5,
    )
    return F.linear((z * F.silu(gate.to(compute))).to(linear.dtype), linear)


def arguments(shape, dtype, device, outputs=20):
    *_, channels = shape
    return dict(
        y=normal(*shape, dtype=dtype, device=device),
        gate=normal(*shape, dtype=dtype, device=device, seed=1),
        weight=normal(channels, device=device, seed=2),
        bias=normal(channels, device=device, seed=3),
        linear=normal(outputs, channels, dtype=dtype, device=device, seed=4),
    )


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_output_and_gradients(kernel, shape, dtype, device):
    values = arguments(shape, dtype, device)
    assert_close_to_reference(kernel, reference, values)


def test_slices_of_a_wider_map(kernel, device):
    values = arguments((2, 7, 9, 24), torch.float32, device)
    wide = torch.cat([values['y'], values['gate']], dim=-1)
    sliced = dict(zip(('y', 'gate'), wide.chunk(2, dim=-1), strict=True))
    assert_close_to_reference(kernel, reference, {**values, **sliced})


@pytest.mark.parametrize('name', ['y', 'gate', 'weight', 'linear'])
def test_gradient_of_one_argument_alone(kernel, name, device):
    values = arguments((1, 5, 3, 24), torch.float32, device)
    fixed = tuple(values.keys() - {name})
    assert_close_to_reference(kernel, reference, values, fixed)


def test_inference(kernel, device):
    values = arguments((2, 7, 9, 24), torch.float32, device)
    with torch.no_grad():
        expected = reference(**values)
        actual = kernel(**values)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('grads', [True, False], ids=['grads', 'no grads'])
def test_weight_in_fp32_under_autocast(kernel, grads, device):
    values = arguments((2, 7, 9, 24), torch.bfloat16, device)
    wide = {**values, 'linear': values['linear'].float()}
    kind = torch.device(device).type
    with torch.set_grad_enabled(grads), torch.autocast(kind, torch.bfloat16):
        y = kernel(**{**wide, 'y': wide['y'].clone()})
        expected = kernel(**values)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
