from functools import partial

import pytest
import torch

from evmamba_mm.ops.fused import (
    layer_norm,
    layer_norm_branches,
    layer_norm_gate,
    norm,
)

from ..scan_cases import relative_error
from .kernel_cases import (
    DTYPES,
    assert_kernel_is_right,
    assert_same,
    normal,
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
OPS = {'plain': layer_norm, 'gated': layer_norm_gate}


def norm_arguments(shape, gated, dtype=torch.float64, device='cpu'):
    """Tokens that are far from mean 0 and variance 1."""
    make = partial(normal, dtype=dtype, device=device)
    maps = {'y': make(*shape) * 3 + 1, 'gate': make(*shape, seed=1) * 2}
    if not gated:
        maps = {'x': maps['y']}
    weight = normal(shape[-1], seed=2, device=device).float()
    bias = normal(shape[-1], seed=3, device=device).float()
    if dtype == torch.float64:
        weight, bias = weight.double(), bias.double()
    return maps | {'weight': weight, 'bias': bias}


@pytest.fixture(params=[False, True], ids=OPS)
def gated(request):
    return request.param


@pytest.fixture
def op(gated):
    return layer_norm_gate if gated else layer_norm


@pytest.mark.parametrize('eps', [1e-5, 0.5])
def test_twin_follows_the_definition(op, gated, eps):
    arguments = norm_arguments((2, 3, 5), gated)
    x, *gate, weight, bias = arguments.values()
    mean = x.sum(-1, keepdim=True) / 5
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / 5
    expected = (x - mean) / (variance + eps) ** 0.5 * weight + bias
    if gated:
        expected = expected * gate[0] / (1 + torch.exp(-gate[0]))
    y = op(**arguments, eps=eps)
    torch.testing.assert_close(y, expected)


def test_twin_passes_gradcheck(op, gated):
    arguments = norm_arguments((2, 2, 4), gated)
    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(op, gated, shape, dtype, device):
    arguments = norm_arguments(shape, gated, dtype, device)
    assert_kernel_is_right(op, arguments, dtype)


@pytest.mark.parametrize('channels', [20, 1030])
def test_program_of_many_steps(op, gated, channels, device, monkeypatch):
    from evmamba_mm.ops.fused import norm_triton, tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', 0)
    monkeypatch.setattr(norm_triton, '_MOST_PARTIAL_SUMS', 2)
    rows = 3 * tiles.row_tile(channels).rows + 20
    dtype = torch.float32
    arguments = norm_arguments((rows, channels), gated, dtype, device)
    assert_kernel_is_right(op, arguments, dtype)


def test_half_of_a_wider_map_is_read_in_place(device):
    both = normal(2, 3, 5, 96, dtype=torch.float32, device=device)
    y, gate = both.chunk(2, dim=-1)
    arguments = norm_arguments((48,), True, torch.float32, device)
    arguments |= {'y': y, 'gate': gate}
    assert_kernel_is_right(layer_norm_gate, arguments, torch.float32)


def test_channels_first_memory(op, gated, device):
    arguments = norm_arguments((2, 48, 3, 5), gated, torch.float32, device)
    wide = norm_arguments((48,), gated, torch.float32, device)
    arguments = {
        name: wide[name] if x.dim() == 1 else x.permute(0, 2, 3, 1)
        for name, x in arguments.items()
    }
    assert_kernel_is_right(op, arguments, torch.float32)


def test_gradient_that_is_not_dense(op, gated, device):
    arguments = norm_arguments((2, 3, 48), gated, torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]

    def gradients(backend):
        y = op(*leaves, backend=backend)
        return torch.autograd.grad(y.sum() + y[..., ::2].sum(), leaves)

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for kernel, twin in pairs:
        assert relative_error(kernel, twin) < 1e-5


def test_parameters_and_gate_of_other_dtypes(device):
    arguments = norm_arguments((7, 48), True, torch.float32, device)
    arguments['gate'] = arguments['gate'].half()
    arguments['weight'] = arguments['weight'].half()
    assert_kernel_is_right(layer_norm_gate, arguments, torch.float32)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_autocast_decides_the_dtype(op, gated, backend, device):
    arguments = norm_arguments((7, 48), gated, torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]
    expected = op(*leaves, backend='torch')
    with torch.autocast(device, torch.float16):
        y = op(*leaves, backend=backend)
    assert y.dtype == torch.float16
    assert relative_error(y, expected.half()) < 1e-4
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    wanted = torch.autograd.grad(expected.sum(), leaves)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, other) < 1e-5


def test_large_mean_keeps_its_digits(op, gated, device):
    arguments = norm_arguments((7, 96), gated, torch.float32, device)
    name = 'y' if gated else 'x'
    arguments[name] = arguments[name] + 1000
    exact = op(**{key: x.double() for key, x in arguments.items()})
    y = op(**arguments, backend='triton')
    assert relative_error(y, exact) < 1e-4


def test_two_runs_are_the_same(op, gated, device):
    arguments = norm_arguments((65, 48), gated, torch.bfloat16, device)
    runs = [results(op, arguments, 'triton', torch.bfloat16) for _ in range(2)]
    assert_same(*runs)


def test_opcheck(gated, device):
    arguments = norm_arguments((2, 3, 48), gated, torch.float32, device)
    x, *gate, weight, bias = arguments.values()
    gate = gate[0] if gated else None
    tensors = [
        None if t is None else t.requires_grad_()
        for t in (x, gate, weight, bias)
    ]
    torch.library.opcheck(norm._layer_norm, (*tensors, 1e-5, torch.bfloat16))
    dout = torch.ones_like(x)
    tensors = [None if t is None else t.detach() for t in tensors]
    torch.library.opcheck(norm._layer_norm_backward, (dout, *tensors, 1e-5))


def test_compiles_into_one_graph(op, gated, device):
    arguments = norm_arguments((2, 3, 48), gated, torch.float32, device)
    compiled = torch.compile(op, fullgraph=True, backend='aot_eager')
    assert_same(
        results(compiled, arguments, 'triton', torch.float32),
        results(op, arguments, 'triton', torch.float32),
    )


@pytest.mark.parametrize('name', ['weight', 'bias', 'gate'])
def test_wrong_shape_is_named(name):
    arguments = norm_arguments((2, 3, 48), True)
    arguments[name] = arguments[name][..., :1]
    with pytest.raises(ValueError, match=f'{name} must have .*1,?'):
        layer_norm_gate(**arguments)


def branches_summed(uses, **arguments):
    """Of the three results, those in use with a factor each."""
    three = layer_norm_branches(**arguments)
    return sum(three[i] * factor for i, factor in uses.items())


USES = {
    'all': {0: 1, 1: -2, 2: 0.5},
    'two-norms': {0: 1, 1: -2},
    'first': {0: 3, 2: 0.5},
    'second': {1: 3, 2: 0.5},
    'third': {2: 0.5},
}


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_branches(shape, dtype, device):
    # Of one channel, no variance would be left to divide by but the eps.
    op = partial(branches_summed, USES['all'], eps=0.1)
    arguments = norm_arguments(shape, False, dtype, device)
    assert_kernel_is_right(op, arguments, dtype)


@pytest.mark.parametrize('uses', USES.values(), ids=USES)
def test_branches_without_a_gradient(uses, device):
    arguments = norm_arguments((2, 5, 7, 48), False, torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]

    def gradients(backend):
        y = branches_summed(uses, **arguments, backend=backend)
        return torch.autograd.grad(y.sum(), leaves, allow_unused=True)

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for kernel, twin in pairs:
        assert (kernel is None) == (twin is None)
        if twin is not None:
            assert relative_error(kernel, twin) < 1e-5


def test_branches_of_strided_gradients(device):
    arguments = norm_arguments((2, 3, 5, 48), False, torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]
    wide = [
        normal(2, 48, 3, 5, dtype=torch.float32, device=device, seed=i)
        for i in range(3)
    ]

    def gradients(backend):
        three = layer_norm_branches(*leaves, backend=backend)
        douts = [x.permute(0, 2, 3, 1) for x in wide]
        return torch.autograd.grad(three, leaves, douts)

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for kernel, twin in pairs:
        assert relative_error(kernel, twin) < 1e-5


@pytest.mark.parametrize('branch', range(3))
def test_branch_is_not_changed_in_place(branch, device):
    arguments = norm_arguments((3, 48), False, torch.float32, device)
    arguments['x'].requires_grad_()
    three = layer_norm_branches(**arguments, backend='triton')
    with pytest.raises(RuntimeError, match='modified inplace|in-place'):
        three[branch].relu_()


def test_branches_without_gradients_are_one(device):
    arguments = norm_arguments((3, 48), False, torch.float32, device)
    with torch.no_grad():
        left, right, x = layer_norm_branches(**arguments, backend='triton')
    assert left is right
    assert x is arguments['x']


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu(op, gated):
    arguments = norm_arguments((7, 48), gated, torch.float32, 'cuda:1')
    assert_kernel_is_right(op, arguments, torch.float32)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
def test_more_elements_than_an_int32_counts():
    rows = 2**31 // 64 + 5
    x = torch.zeros(rows, 64, dtype=torch.bfloat16, device='cuda')
    x[-3:] = normal(3, 64).to(x)
    weight, bias = torch.ones(64).cuda(), torch.zeros(64).cuda()
    tail = x[-3:].clone().requires_grad_()
    expected = layer_norm(tail, weight, bias, backend='torch')
    dy = torch.zeros_like(x)
    dy[-3:] = normal(3, 64, seed=1).to(x)
    (wanted,) = torch.autograd.grad(expected, tail, dy[-3:])
    y = layer_norm(x.requires_grad_(), weight, bias, backend='triton')
    assert relative_error(y[-3:], expected) < 1e-2
    (dx,) = torch.autograd.grad(y, x, dy)
    assert relative_error(dx[-3:], wanted) < 1e-2
