from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

from .cases import (
    DTYPES,
    assert_close_to_reference,
    normal,
    relative_error,
    results,
)

SHAPES = {
    'vector': (48,),
    'map': (2, 5, 7, 48),
    'one-channel': (5, 1),
    'odd-channels': (33, 3),
    'prime-channels': (2, 9, 131),
    'two-warps': (3, 96),
    'wide': (3, 1536),
    'no-token': (0, 48),
}
MERGED_SHAPES = {
    'even': (2, 4, 6, 48),
    'odd': (2, 13, 5, 12),
    'odd-high': (1, 3, 4, 33),
    'one-cell': (3, 1, 1, 96),
    'one-row': (1, 1, 7, 16),
    'one-channel': (2, 3, 3, 1),
    'wide': (1, 3, 2, 384),
    'no-image': (0, 2, 2, 48),
}


@pytest.fixture
def norms(device):
    from evmamba_mm.ops.triton import layer_norm

    return layer_norm


@pytest.fixture
def few_programs(norms, monkeypatch):
    """Two programs at most, of many steps each."""
    common = norms.common
    limits = common.LIMITS._replace(multiprocessors=0, partial_sums=2)
    monkeypatch.setattr(common, 'LIMITS', limits)
    monkeypatch.setattr(norms, 'split_rows', common.split_rows.__wrapped__)


def layer_norm(x, weight, bias, gate=None, eps=1e-5):
    wide = torch.promote_types(x.dtype, torch.float32)
    shape, weight, bias = x.shape[-1:], weight.to(wide), bias.to(wide)
    y = F.layer_norm(x.to(wide), shape, weight, bias, eps)
    return (y if gate is None else y * F.silu(gate.to(wide))).to(x.dtype)


def merge(x):
    """The 2x2 neighbours of each cell, one after the other."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    places = ((0, 0), (1, 0), (0, 1), (1, 1))
    return torch.cat([x[:, i::2, j::2] for i, j in places], dim=-1)


def merge_layer_norm(x, weight, bias, eps=1e-5):
    return layer_norm(merge(x), weight, bias, eps=eps)


@pytest.fixture
def kernels(norms):
    """The plain and the gated norm, called as their reference is."""

    class Gated(Function):
        @staticmethod
        def forward(ctx, x, weight, bias, gate, eps):
            ctx.save_for_backward(x, gate, weight, bias)
            ctx.eps = eps
            return norms.norm_forward(x, gate, weight, bias, eps, x.dtype)

        @staticmethod
        def backward(ctx, dy):
            x, gate, weight, bias = ctx.saved_tensors
            dx, dgate, sums = norms.norm_backward(
                dy, x, gate, weight, bias, ctx.eps
            )
            assert sums.dtype == torch.float32
            dweight, dbias = sums
            dweight, dbias = dweight.to(weight.dtype), dbias.to(bias.dtype)
            return dx, dweight, dbias, dgate, None

    def run(x, weight, bias, gate=None, eps=1e-5):
        if gate is None:
            return norms.layer_norm(x, weight, bias, eps, x.dtype)
        return Gated.apply(x, weight, bias, gate, eps)

    return run


@pytest.fixture
def merged(norms):
    def run(x, weight, bias, eps=1e-5):
        return norms.merge_layer_norm(x, weight, bias, eps, x.dtype)

    return run


def arguments_of(shape, gated=False, dtype=torch.float32, device='cpu'):
    """Tokens that are far from mean 0 and variance 1."""
    make = partial(normal, device=device)
    maps = {'x': (make(*shape) * 3 + 1).to(dtype)}
    if gated:
        maps['gate'] = (make(*shape, seed=1) * 2).to(dtype)
    weight, bias = make(shape[-1], seed=2), make(shape[-1], seed=3)
    return maps | {'weight': weight, 'bias': bias}


def merged_arguments(shape, dtype=torch.float32, device='cpu'):
    x = (normal(*shape, device=device) + 1).to(dtype)
    return arguments_of((4 * shape[3],), device=device) | {'x': x}


@pytest.fixture(params=[False, True], ids=['plain', 'gated'])
def gated(request):
    return request.param


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_norm(kernels, gated, shape, dtype, device):
    arguments = arguments_of(shape, gated, dtype, device)
    assert_close_to_reference(kernels, layer_norm, arguments)


@pytest.mark.parametrize('channels', [20, 1030])
def test_program_of_many_steps(
    kernels, gated, channels, norms, device, few_programs
):
    rows = 3 * norms.row_tile(channels).rows + 20
    arguments = arguments_of((rows, channels), gated, device=device)
    assert_close_to_reference(kernels, layer_norm, arguments)


def test_half_of_a_wider_map_is_read_in_place(kernels, device):
    x, gate = normal(2, 3, 5, 96, device=device).chunk(2, dim=-1)
    arguments = arguments_of((48,), device=device) | {'x': x, 'gate': gate}
    assert_close_to_reference(kernels, layer_norm, arguments)


def test_channels_first_memory(kernels, gated, device):
    arguments = arguments_of((2, 48, 3, 5), gated, device=device)
    wide = arguments_of((48,), device=device)
    arguments = {
        name: wide[name] if x.dim() == 1 else x.permute(0, 2, 3, 1)
        for name, x in arguments.items()
    }
    assert_close_to_reference(kernels, layer_norm, arguments)


def test_gradient_that_is_not_dense(kernels, gated, device):
    arguments = arguments_of((2, 3, 48), gated, device=device)

    def both(function, **arguments):
        y = function(**arguments)
        return torch.cat([y, y[..., ::2]], dim=-1)

    assert_close_to_reference(
        partial(both, kernels), partial(both, layer_norm), arguments
    )


def test_parameters_and_gate_of_other_dtypes(kernels, device):
    arguments = arguments_of((7, 48), True, device=device)
    arguments['gate'] = arguments['gate'].half()
    arguments['weight'] = arguments['weight'].half()
    assert_close_to_reference(kernels, layer_norm, arguments)


def test_result_of_another_dtype(norms, device):
    arguments = arguments_of((7, 48), device=device)
    leaves = [x.requires_grad_() for x in arguments.values()]
    expected = layer_norm(*leaves)
    y = norms.layer_norm(*leaves, 1e-5, torch.float16)
    assert y.dtype == torch.float16
    assert relative_error(y.detach(), expected.detach()) < 1e-3
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    wanted = torch.autograd.grad(expected.sum(), leaves)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, other) < 1e-5


def test_large_mean_keeps_its_digits(kernels, gated, device):
    arguments = arguments_of((7, 96), gated, device=device)
    arguments['x'] = arguments['x'] + 1000
    exact = layer_norm(**{key: x.double() for key, x in arguments.items()})
    assert relative_error(kernels(**arguments), exact) < 1e-4


def test_without_eps(kernels, gated, device):
    """Rows beyond the tokens have no variance."""
    arguments = arguments_of((9, 7), gated, device=device)
    assert_close_to_reference(
        partial(kernels, eps=0.0), partial(layer_norm, eps=0.0), arguments
    )


def test_two_runs_are_the_same(kernels, gated, device):
    arguments = arguments_of((65, 48), gated, torch.bfloat16, device)
    first, second = (results(kernels, arguments) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_inference(kernels, merged, device):
    plain = arguments_of((2, 5, 48), device=device)
    wide = merged_arguments((2, 3, 5, 12), device=device)
    for function, arguments in ((kernels, plain), (merged, wide)):
        y = function(**arguments)
        with torch.no_grad():
            assert torch.equal(function(**arguments), y)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', MERGED_SHAPES.values(), ids=MERGED_SHAPES)
def test_merged(merged, shape, dtype, device):
    arguments = merged_arguments(shape, dtype, device)
    assert_close_to_reference(merged, merge_layer_norm, arguments)


@pytest.mark.parametrize('multiprocessors', [0, 10**6], ids=['few', 'many'])
def test_any_number_of_programs_merges(
    merged, multiprocessors, norms, device, few_programs, monkeypatch
):
    limits = norms.common.LIMITS._replace(
        multiprocessors=multiprocessors,
        partial_sums=max(1, multiprocessors),
    )
    monkeypatch.setattr(norms.common, 'LIMITS', limits)
    arguments = merged_arguments((3, 9, 11, 24), device=device)
    assert_close_to_reference(merged, merge_layer_norm, arguments)


def test_merged_map_with_strides(merged, device):
    x = normal(2, 3, 5, 48, device=device)
    for view in (x[:, :, 1:], x[..., :24], x.permute(0, 3, 1, 2)):
        arguments = merged_arguments(view.shape, device=device) | {'x': view}
        assert_close_to_reference(merged, merge_layer_norm, arguments)


def test_merged_gradient_with_strides(merged, device):
    def turned(function, **arguments):
        return function(**arguments).permute(0, 3, 1, 2)

    arguments = merged_arguments((2, 3, 5, 12), device=device)
    assert_close_to_reference(
        partial(turned, merged), partial(turned, merge_layer_norm), arguments
    )


def test_merged_without_eps(merged, device):
    arguments = merged_arguments((1, 7, 9, 5), device=device)
    assert_close_to_reference(
        partial(merged, eps=0.0),
        partial(merge_layer_norm, eps=0.0),
        arguments,
    )


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
def test_more_elements_than_an_int32_counts(norms):
    rows = 2**31 // 64 + 5
    x = torch.zeros(rows, 64, dtype=torch.bfloat16, device='cuda')
    x[-3:] = normal(3, 64).to(x)
    weight, bias = torch.ones(64).cuda(), torch.zeros(64).cuda()
    tail = x[-3:].clone().requires_grad_()
    expected = layer_norm(tail, weight, bias)
    dy = torch.zeros_like(x)
    dy[-3:] = normal(3, 64, seed=1).to(x)
    (wanted,) = torch.autograd.grad(expected, tail, dy[-3:])
    y = norms.layer_norm(x.requires_grad_(), weight, bias, 1e-5, x.dtype)
    assert relative_error(y[-3:], expected) < 1e-2
    (dx,) = torch.autograd.grad(y, x, dy)
    assert relative_error(dx[-3:], wanted) < 1e-2
