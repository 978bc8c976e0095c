from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import norm_gate_linear
from evmamba_mm.ops.fused.gated_linear import _NormGateLinear

from ..scan_cases import devices, relative_error, value_and_gradients
from .kernel_cases import DTYPES, assert_inference_is_right, normal

NAMES = ('y', 'gate', 'weight', 'bias', 'linear')


def arguments(device='cpu', dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(device, dtype)

    tokens = (2, 3, 5, 24)
    return dict(
        y=draw(*tokens),
        gate=draw(*tokens),
        weight=draw(24),
        bias=draw(24),
        linear=draw(12, 24),
    )


def definition(y, gate, weight, bias, linear):
    z = F.layer_norm(y, y.shape[-1:], weight, bias, 1e-5) * F.silu(gate)
    return F.linear(z, linear)


def test_plain_torch_follows_the_definition():
    values = arguments()
    torch.testing.assert_close(
        norm_gate_linear(**values, eps=1e-5), definition(**values)
    )


def test_recomputing_gives_the_same_gradients():
    """By the kernels, which a CPU interprets."""
    device = devices()[-1]

    def recomputing(y, gate, weight, bias, linear):
        return _NormGateLinear.apply(
            y, gate, weight, bias, 1e-5, linear, torch.float32
        )

    expected = value_and_gradients(definition, arguments())
    actual = value_and_gradients(recomputing, arguments(device, torch.float32))
    assert relative_error(actual[0], expected[0]) < 1e-5
    for name in NAMES:
        error = relative_error(actual[1][name], expected[1][name])
        assert error < 1e-5, name


# Tokens with their channels, and outputs.
CASES = {
    'block': ((2, 7, 9, 96), 48),
    'odd': ((1, 3, 5, 33), 7),
    'one-token': ((1, 192), 96),
    'many-outputs': ((70, 40), 130),
    'one-channel': ((5, 1), 3),
    'widest': ((9, 256), 20),
    'beyond': ((9, 260), 20),
    'no-token': ((0, 4, 24), 12),
}


def kernel_arguments(shape, outputs, dtype, device):
    wide = torch.promote_types(dtype, torch.float32)
    channels = shape[-1]
    return dict(
        y=normal(*shape, dtype=dtype, device=device) + 1,
        gate=normal(*shape, dtype=dtype, device=device, seed=1),
        weight=normal(channels, dtype=wide, device=device, seed=2),
        bias=normal(channels, dtype=wide, device=device, seed=3),
        linear=normal(outputs, channels, dtype=dtype, device=device, seed=4),
    )


assert_near = partial(
    assert_inference_is_right, partial(norm_gate_linear, eps=1e-5)
)


@torch.no_grad()
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(('shape', 'outputs'), CASES.values(), ids=CASES)
def test_kernel_of_an_inference(shape, outputs, dtype, device):
    values = kernel_arguments(shape, outputs, dtype, device)
    z = norm_gate_linear(**values, eps=1e-5, backend='triton')
    if z.numel():
        assert_near(z, values, dtype)
    else:
        assert z.shape == (0, 4, 12)


@torch.no_grad()
def test_strided_tokens_and_gates(device):
    shape = (2, 7, 9, 40)
    values = kernel_arguments(shape, 24, torch.float16, device)
    both = normal(2, 7, 9, 80, dtype=torch.float16, device=device)
    y, gate = both.chunk(2, -1)
    values |= dict(y=y, gate=gate)
    assert_near(
        norm_gate_linear(**values, eps=1e-5, backend='triton'),
        values,
        torch.float16,
    )
    values |= dict(y=y.transpose(0, 1), gate=gate.transpose(0, 1))
    assert_near(
        norm_gate_linear(**values, eps=1e-5, backend='triton'),
        values,
        torch.float16,
    )


@torch.no_grad()
@pytest.mark.parametrize('processors', [0, 10**6], ids=['few', 'many'])
def test_any_number_of_programs(processors, device, monkeypatch):
    from evmamba_mm.ops.fused import tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', processors)
    tiles.split_rows.cache_clear()
    values = kernel_arguments((3, 9, 11, 24), 12, torch.float16, device)
    z = norm_gate_linear(**values, eps=1e-5, backend='triton')
    tiles.split_rows.cache_clear()
    assert_near(z, values, torch.float16)


@torch.no_grad()
def test_autocast_narrows_the_result(device):
    values = kernel_arguments((3, 5, 96), 48, torch.float16, device)
    with torch.autocast(device, torch.bfloat16):
        z = norm_gate_linear(**values, eps=1e-5, backend='triton')
    assert z.dtype == torch.bfloat16
    expected = norm_gate_linear(**values, eps=1e-5, backend='torch')
    assert relative_error(z.float(), expected) < 2e-2


def test_a_linear_map_that_does_not_fit():
    values = arguments() | {'linear': torch.zeros(12, 23)}
    with pytest.raises(ValueError, match=r'linear must have shape \(C, 24\)'):
        norm_gate_linear(**values, eps=1e-5)


def test_one_token_has_gradients(device):
    values = kernel_arguments((24,), 12, torch.float32, device)
    leaves = {name: x.requires_grad_() for name, x in values.items()}
    gradients = [
        torch.autograd.grad(
            norm_gate_linear(**leaves, eps=1e-5, backend=backend).sum(),
            list(leaves.values()),
        )
        for backend in ('triton', 'torch')
    ]
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_gate_that_is_shut_far(device):
    values = kernel_arguments((3, 24), 12, torch.bfloat16, device)
    values['gate'].fill_(-2e38)
    values['weight'].fill_(4)
    z = norm_gate_linear(**values, eps=1e-5, backend='triton')
    assert z.eq(0).all()
