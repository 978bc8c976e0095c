from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import norm_gate_linear
from evmamba_mm.ops.fused.gated_linear import _NormGateLinear

from ..scan_cases import devices, relative_error, value_and_gradients
from .kernel_cases import (
    DTYPES,
    assert_inference_is_right,
    assert_kernel_is_right,
    assert_same,
    normal,
    results,
)

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


operation = partial(norm_gate_linear, eps=1e-5)

# Tokens with their channels, and outputs.
TRAININGS = {
    'block': ((2, 7, 9, 96), 48),
    'wide-block': ((2, 5, 7, 192), 96),
    'one-pixel': ((1, 1, 1, 24), 12),
    'one-row': ((1, 1, 7, 40), 20),
    'odd-map': ((1, 13, 5, 131), 65),
    'few-channels': ((33, 3), 1),
    'one-channel': ((5, 1), 3),
    'many-outputs': ((70, 40), 130),
    'widest': ((19, 256), 128),
    'outputs-beyond': ((9, 24), 1100),
    'channels-beyond': ((9, 260), 20),
    'no-token': ((0, 4, 24), 12),
}


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ('shape', 'outputs'), TRAININGS.values(), ids=TRAININGS
)
def test_kernels_of_a_training(shape, outputs, dtype, device):
    values = kernel_arguments(shape, outputs, dtype, device)
    assert_kernel_is_right(operation, values, dtype)


def poisoned(monkeypatch):
    """Memory that was not written holds no numbers."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(make):
        return lambda *a, **k: make(*a, **k).fill_(torch.nan)

    monkeypatch.setattr(torch, 'empty', fill(empty))
    monkeypatch.setattr(torch, 'empty_like', fill(empty_like))


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_training_with_strides(dtype, device, monkeypatch):
    """Neighbours of a slice are no numbers, and neither is new memory."""
    values = kernel_arguments((2, 7, 9, 40), 24, dtype, device)
    wide = torch.full((2, 7, 9, 96), torch.nan, dtype=dtype, device=device)
    wide[..., 8:48], wide[..., 56:] = values['y'], values['gate']
    poisoned(monkeypatch)
    values |= dict(y=wide[..., 8:48], gate=wide[..., 56:])
    assert_kernel_is_right(operation, values, dtype)
    first = {
        name: values[name].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        for name in ('y', 'gate')
    }
    assert_kernel_is_right(operation, values | first, dtype)


GRADIENTS = {
    'channels-first': lambda x: (
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    ),
    'slice': lambda x: torch.cat([x, x], -1)[..., 24:],
    'every-second': lambda x: torch.stack([x, x], -1)[..., 0],
    'expanded': lambda x: x[0, 0, 0].expand(x.shape),
    'one-number': lambda x: x[0, 0, 0, 0].expand(x.shape),
}


@pytest.mark.parametrize('view', GRADIENTS.values(), ids=GRADIENTS)
def test_gradient_with_strides(view, device):
    values = kernel_arguments((2, 3, 5, 40), 24, torch.float16, device)
    dz = view(normal(2, 3, 5, 24, dtype=torch.float16, device=device))

    def gradients(backend, wide):
        leaves = [
            x.to(torch.promote_types(x.dtype, wide)).requires_grad_()
            for x in values.values()
        ]
        z = norm_gate_linear(*leaves[:4], 1e-5, leaves[4], backend)
        return torch.autograd.grad(z, leaves, dz.to(z.dtype))

    actual = gradients('triton', torch.float16)
    exact = gradients('torch', torch.float64)
    for name, x, wanted in zip(NAMES, actual, exact, strict=True):
        assert relative_error(x, wanted) < 2e-3, name


@pytest.mark.parametrize('name', NAMES)
def test_gradient_of_one_argument_alone(name, device):
    values = kernel_arguments((3, 5, 24), 12, torch.float16, device)
    fixed = tuple(set(NAMES) - {name})
    assert_kernel_is_right(operation, values, torch.float16, fixed)


def test_training_under_autocast(device):
    """Maps and parameters in fp32, the product in half precision."""
    values = kernel_arguments((3, 5, 96), 48, torch.float32, device)
    leaves = [x.requires_grad_() for x in values.values()]

    def gradients(backend):
        with torch.autocast(device, torch.bfloat16):
            z = norm_gate_linear(*leaves[:4], 1e-5, leaves[4], backend)
        dz = normal(*z.shape, dtype=z.dtype, device=device)
        return torch.autograd.grad(z, leaves, dz)

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for name, (kernel, twin) in zip(NAMES, pairs, strict=True):
        assert kernel.dtype == torch.float32
        assert relative_error(kernel, twin) < 2e-2, name


@pytest.mark.parametrize('processors', [0, 10**6], ids=['few', 'many'])
def test_training_by_any_number_of_programs(processors, device, monkeypatch):
    from evmamba_mm.ops.fused import gated_linear_backward_triton, tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', processors)
    monkeypatch.setattr(gated_linear_backward_triton, '_PROGRAMS', 3)
    caches = tiles.split_rows, gated_linear_backward_triton._options
    for cache in caches:
        cache.cache_clear()
    values = kernel_arguments((3, 9, 11, 24), 12, torch.float16, device)
    assert_kernel_is_right(operation, values, torch.float16)
    for cache in caches:
        cache.cache_clear()


def test_rows_outside_without_an_eps(device):
    """They have no variance, and must not enter a sum."""
    values = kernel_arguments((7, 40), 20, torch.float16, device)
    assert_kernel_is_right(
        partial(norm_gate_linear, eps=0.0), values, torch.float16
    )


def test_two_trainings_are_the_same(device):
    values = kernel_arguments((65, 96), 48, torch.bfloat16, device)
    runs = [
        results(operation, values, 'triton', torch.bfloat16) for _ in range(2)
    ]
    assert_same(*runs)


def test_gradients_of_a_gate_that_is_shut_far(device):
    values = kernel_arguments((3, 24), 12, torch.bfloat16, device)
    values['gate'].fill_(-2e38)
    found = results(operation, values, 'triton', torch.bfloat16)
    assert all(x.eq(0).all() for x in found.values())
