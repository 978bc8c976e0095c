from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evmamba_mm.ops.fused import depthwise
from evmamba_mm.ops.fused.depthwise import ACTIVATIONS, depthwise_conv3x3

from ..scan_cases import relative_error
from .kernel_cases import (
    DTYPES,
    assert_kernel_is_right,
    assert_same,
    normal,
    results,
)

SHAPES = {
    'one-pixel': (1, 1, 1, 40),
    'one-row': (2, 1, 6, 5),
    'one-column': (1, 11, 1, 16),
    'odd': (2, 5, 3, 35),
    'wide': (1, 2, 3, 130),
    'no-image': (0, 3, 4, 16),
}


def conv_arguments(
    shape, dtype=torch.float64, device='cpu', with_bias=True, weight_dtype=None
):
    if weight_dtype is None:
        wide = dtype == torch.float64
        weight_dtype = torch.float64 if wide else torch.float32
    make = partial(normal, dtype=weight_dtype, device=device)
    return {
        'x': normal(*shape, dtype=dtype, device=device),
        'weight': make(shape[-1], 1, 3, 3, seed=1),
        'bias': make(shape[-1], seed=2) if with_bias else None,
    }


@pytest.fixture(params=ACTIVATIONS)
def activation(request):
    return request.param


@pytest.fixture
def op(activation):
    return partial(depthwise_conv3x3, activation=activation)


@pytest.fixture
def silu():
    return partial(depthwise_conv3x3, activation='silu')


def test_twin_is_the_sum_over_neighbours(op, activation):
    arguments = conv_arguments((2, 3, 4, 5))
    x, weight, bias = arguments.values()
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    y = bias.expand_as(x).clone()
    for row in range(3):
        for col in range(3):
            neighbour = padded[:, row : row + 3, col : col + 4]
            y += neighbour * weight[:, 0, row, col]
    module = {
        'none': nn.Identity(),
        'relu': nn.ReLU(),
        'gelu': nn.GELU(),
        'silu': nn.SiLU(),
    }[activation]
    torch.testing.assert_close(op(**arguments), module(y))


@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no-bias'])
def test_twin_passes_gradcheck(op, with_bias):
    arguments = conv_arguments((2, 3, 2, 2), with_bias=with_bias)
    leaves = [
        None if x is None else x.requires_grad_() for x in arguments.values()
    ]
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(silu, shape, dtype, device):
    arguments = conv_arguments(shape, dtype, device)
    assert_kernel_is_right(silu, arguments, dtype)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_kernel_of_each_activation(op, dtype, device):
    arguments = conv_arguments((1, 5, 4, 20), dtype, device)
    assert_kernel_is_right(op, arguments, dtype)


def with_relu_before(x, weight, bias, backend):
    return depthwise_conv3x3(
        x, weight, bias, 'silu', input_activation='relu', backend=backend
    )


def test_twin_activates_the_input():
    x, weight, bias = conv_arguments((2, 3, 4, 5)).values()
    y = with_relu_before(x, weight, bias, 'torch')
    expected = depthwise_conv3x3(F.relu(x), weight, bias, 'silu')
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel_activates_the_input(shape, dtype, device):
    arguments = conv_arguments(shape, dtype, device)
    assert_kernel_is_right(with_relu_before, arguments, dtype)


def want_programs(enough, monkeypatch):
    """Cut maps for another number of programs."""
    from evmamba_mm.ops.fused import depthwise_plan, depthwise_triton

    for module in (depthwise_plan, depthwise_triton):
        monkeypatch.setattr(module, 'ENOUGH_PROGRAMS', enough)
    for name in ('plan_conv', 'gradient_plan'):
        anew = getattr(depthwise_plan, name).__wrapped__
        monkeypatch.setattr(depthwise_triton, name, anew)


@pytest.mark.parametrize('enough', [1, 10**6], ids=['long', 'short'])
@torch.no_grad()
def test_activating_while_reading_equals_activating_before(
    enough, device, monkeypatch
):
    """Also where a gradient needs nothing, and with a NaN in the map."""
    want_programs(enough, monkeypatch)
    arguments = conv_arguments((2, 19, 5, 18), torch.float16, device)
    arguments['x'][0, 3, 2, 1] = torch.nan
    y = with_relu_before(**arguments, backend='triton')
    arguments['x'] = F.relu(arguments['x'])
    expected = depthwise_conv3x3(
        **arguments, activation='silu', backend='triton'
    )
    assert y.isnan().sum() == 9
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


def test_input_activation_compiles_into_one_graph(device):
    arguments = conv_arguments((2, 3, 4, 16), torch.float32, device)
    compiled = torch.compile(
        with_relu_before, fullgraph=True, backend='aot_eager'
    )
    assert_same(
        results(compiled, arguments, 'triton', torch.float32),
        results(with_relu_before, arguments, 'triton', torch.float32),
    )


def test_kernel_without_bias(silu, device):
    arguments = conv_arguments(
        (2, 5, 6, 40), torch.float32, device, with_bias=False
    )
    assert_kernel_is_right(silu, arguments, torch.float32)


def test_kernel_with_half_parameters(silu, device):
    arguments = conv_arguments(
        (2, 5, 6, 20), torch.float16, device, weight_dtype=torch.float16
    )
    assert_kernel_is_right(silu, arguments, torch.float16)


@pytest.mark.parametrize('enough', [1, 4])
def test_long_strips_and_programs_of_many(silu, enough, device, monkeypatch):
    from evmamba_mm.ops.fused import depthwise_triton

    want_programs(enough, monkeypatch)
    arguments = conv_arguments((2, 19, 5, 18), torch.float32, device)
    assert depthwise_triton.plan_conv((2, 19, 5, 18)).rows > 1
    assert_kernel_is_right(silu, arguments, torch.float32)


def test_half_of_a_wider_map_is_read_in_place(silu, device):
    both = normal(2, 5, 3, 64, dtype=torch.float32, device=device)
    for half in both.chunk(2, dim=-1):
        arguments = conv_arguments((2, 5, 3, 32), torch.float32, device)
        arguments['x'] = half
        assert_kernel_is_right(silu, arguments, torch.float32)


def test_channels_first_memory(silu, device):
    arguments = conv_arguments((2, 20, 5, 3), torch.float32, device)
    x = arguments['x'].permute(0, 2, 3, 1)
    arguments = conv_arguments(x.shape, torch.float32, device) | {'x': x}
    assert_kernel_is_right(silu, arguments, torch.float32)


def test_gradient_that_is_not_dense(silu, device):
    arguments = conv_arguments((2, 3, 4, 16), torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]

    def gradients(backend):
        y = silu(*leaves, backend=backend)
        return torch.autograd.grad(y.sum() + y[..., ::2].sum(), leaves)

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for kernel, twin in pairs:
        assert relative_error(kernel, twin) < 1e-5


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_autocast_decides_the_dtype(silu, backend, device):
    arguments = conv_arguments((2, 3, 4, 16), torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]
    expected = silu(*leaves, backend='torch')
    with torch.autocast(device, torch.bfloat16):
        y = silu(*leaves, backend=backend)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected) < 2e-2
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    wanted = torch.autograd.grad(expected.sum(), leaves)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert relative_error(gradient, other) < 2e-2


def test_two_runs_are_the_same(silu, device):
    arguments = conv_arguments((3, 4, 5, 24), torch.float32, device)
    runs = [
        results(silu, arguments, 'triton', torch.float32) for _ in range(2)
    ]
    assert_same(*runs)


@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no-bias'])
def test_opcheck(with_bias, device):
    before = 'relu' if with_bias else 'none'
    activation = 'silu' if with_bias else 'none'
    arguments = conv_arguments(
        (2, 3, 4, 5), torch.float32, device, with_bias=with_bias
    )
    tensors = [
        None if x is None else x.requires_grad_() for x in arguments.values()
    ]
    torch.library.opcheck(
        depthwise._conv, (*tensors, activation, before, torch.bfloat16)
    )
    tensors = [None if x is None else x.detach() for x in tensors]
    dy = torch.ones_like(tensors[0])
    torch.library.opcheck(depthwise._conv_backward, (dy, *tensors, activation))


def test_compiles_into_one_graph(silu, device):
    arguments = conv_arguments((2, 3, 4, 16), torch.float32, device)
    compiled = torch.compile(silu, fullgraph=True, backend='aot_eager')
    assert_same(
        results(compiled, arguments, 'triton', torch.float32),
        results(silu, arguments, 'triton', torch.float32),
    )


@pytest.mark.parametrize(
    'name, change',
    [
        ('x', lambda x: x[0]),
        ('x', lambda x: x[:, :0]),
        ('weight', lambda x: x[:1]),
        ('bias', lambda x: x[:1]),
        ('activation', lambda x: 'tanh'),
        ('input_activation', lambda x: 'gelu'),
    ],
    ids=['no-map', 'no-row', 'weight', 'bias', 'activation', 'input'],
)
def test_illegal_argument_is_named(name, change):
    arguments = conv_arguments((2, 3, 4, 5))
    arguments |= {'activation': 'none', 'input_activation': 'none'}
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=f'^{name} must'):
        depthwise_conv3x3(**arguments)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu(silu):
    arguments = conv_arguments((2, 3, 4, 16), torch.float32, 'cuda:1')
    assert_kernel_is_right(silu, arguments, torch.float32)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
def test_more_elements_than_an_int32_counts():
    images = 2**31 // (64 * 64 * 64) + 1
    x = torch.zeros(images, 64, 64, 64, dtype=torch.bfloat16, device='cuda')
    x[-1] = normal(64, 64, 64).to(x)
    weight = normal(64, 1, 3, 3).float().cuda()
    last = x[-1:].clone().requires_grad_()
    expected = depthwise_conv3x3(last, weight, backend='torch')
    dy = torch.zeros_like(x)
    dy[-1] = normal(64, 64, 64, seed=1).to(x)
    (wanted,) = torch.autograd.grad(expected, last, dy[-1:])
    y = depthwise_conv3x3(x.requires_grad_(), weight, backend='triton')
    assert relative_error(y[-1:], expected) < 1e-2
    (dx,) = torch.autograd.grad(y, x, dy)
    assert relative_error(dx[-1:], wanted) < 1e-2
