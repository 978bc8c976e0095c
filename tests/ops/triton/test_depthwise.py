from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .cases import (
    DTYPES,
    assert_close_to_reference,
    normal,
    relative_error,
    results,
)

pytest.importorskip('triton', reason='triton is not installed')

from evmamba_mm.ops.triton import depthwise as family
from evmamba_mm.ops.triton.batch_norm import ChannelNorm
from evmamba_mm.ops.triton.depthwise import (
    depthwise_conv3x3,
    depthwise_conv3x3_inference,
)
from evmamba_mm.ops.triton.depthwise_op import depthwise_conv3x3_op

ACTIVATIONS = {
    'none': nn.Identity(),
    'relu': nn.ReLU(),
    'gelu': nn.GELU(),
    'silu': nn.SiLU(),
}
SHAPES = {
    'one-pixel': (1, 1, 1, 40),
    'one-row': (2, 1, 6, 5),
    'one-column': (1, 11, 1, 16),
    'odd': (1, 7, 9, 35),
    'long': (1, 13, 5, 7),
    'wide': (1, 2, 2, 70),
    'no-image': (0, 3, 4, 16),
}


def conv_arguments(shape, dtype, device, with_bias=True, weight_dtype=None):
    make = partial(normal, dtype=weight_dtype or torch.float32, device=device)
    return {
        'x': normal(*shape, dtype=dtype, device=device),
        'weight': make(shape[-1], 1, 3, 3, seed=1),
        'bias': make(shape[-1], seed=2) if with_bias else None,
    }


def convolve(x, weight, bias):
    y = F.conv2d(
        x.permute(0, 3, 1, 2),
        weight.to(x.dtype),
        None if bias is None else bias.to(x.dtype),
        padding=1,
        groups=x.shape[3],
    )
    return y.permute(0, 2, 3, 1)


def reference(x, weight, bias, activation='silu', dtype=None):
    """In the dtype of x, or in fp64."""
    dtype = x.dtype if dtype is None or x.dtype == torch.float64 else dtype
    return ACTIVATIONS[activation](convolve(x, weight, bias)).to(dtype)


def kernel(x, weight, bias, activation='silu', dtype=None):
    return depthwise_conv3x3(x, weight, bias, activation, dtype or x.dtype)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(shape, dtype, device):
    arguments = conv_arguments(shape, dtype, device)
    assert_close_to_reference(kernel, reference, arguments)


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_each_activation(activation, dtype, device):
    arguments = conv_arguments((1, 5, 4, 20), dtype, device)
    assert_close_to_reference(
        partial(kernel, activation=activation),
        partial(reference, activation=activation),
        arguments,
    )


def test_without_bias(device):
    arguments = conv_arguments(
        (2, 5, 6, 40), torch.float32, device, with_bias=False
    )
    assert_close_to_reference(kernel, reference, arguments)


def test_half_parameters(device):
    arguments = conv_arguments(
        (2, 5, 6, 20), torch.float16, device, weight_dtype=torch.float16
    )
    assert_close_to_reference(kernel, reference, arguments)


def test_result_in_another_dtype(device):
    options = dict(activation='gelu', dtype=torch.float16)
    arguments = conv_arguments((2, 5, 3, 20), torch.float32, device)
    assert_close_to_reference(
        partial(kernel, **options), partial(reference, **options), arguments
    )


@pytest.mark.parametrize(
    'multiprocessors, shape',
    [(1, (7, 19, 5, 40)), (10**6, (1, 19, 5, 18))],
    ids=['few', 'many'],
)
def test_any_number_of_programs(multiprocessors, shape, device, want_programs):
    want_programs(multiprocessors)
    # With few, a program of the gradient has a block more than another.
    arguments = conv_arguments(shape, torch.float32, device)
    rows = family.conv_plan(shape, 'none').rows
    assert (rows == 1) == (multiprocessors == 10**6)
    assert_close_to_reference(kernel, reference, arguments)


def test_half_of_a_wider_map_is_read_in_place(device):
    both = normal(2, 5, 3, 64, device=device)
    for half in both.chunk(2, dim=-1):
        arguments = conv_arguments((2, 5, 3, 32), torch.float32, device)
        arguments['x'] = half
        assert_close_to_reference(kernel, reference, arguments)


def test_other_layouts(device):
    wide = normal(2, 6, 7, 20, device=device)
    channels_first = normal(2, 20, 5, 3, device=device).permute(0, 2, 3, 1)
    for x in (channels_first, wide[:, 1:, 2:], wide.transpose(1, 2)):
        arguments = conv_arguments(x.shape, torch.float32, device) | {'x': x}
        assert_close_to_reference(kernel, reference, arguments)
        assert kernel(**arguments).is_contiguous()


def test_parameters_with_gaps(device):
    arguments = conv_arguments((2, 3, 4, 20), torch.float32, device)
    for name in ('weight', 'bias'):
        arguments[name] = arguments[name].repeat_interleave(2, 0)[::2]
    assert_close_to_reference(kernel, reference, arguments)


def test_gradient_that_is_not_dense(device):
    arguments = conv_arguments((2, 3, 4, 16), torch.float32, device)

    def gradients(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in arguments.values()]
        y = function(*leaves)
        # A gradient of stride 0 and one of half the channels.
        sums = (y.sum(), y[..., ::2].sum())
        return [
            g
            for z in sums
            for g in torch.autograd.grad(z, leaves, retain_graph=True)
        ]

    pairs = zip(
        gradients(kernel, torch.float32),
        gradients(reference, torch.float64),
        strict=True,
    )
    for actual, expected in pairs:
        assert relative_error(actual, expected) < 1e-5


def test_two_runs_are_the_same(device):
    arguments = conv_arguments((3, 4, 5, 24), torch.float32, device)
    first, second = (results(kernel, arguments) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_second_derivative_is_refused(device):
    arguments = conv_arguments((1, 2, 2, 16), torch.float32, device)
    x = arguments['x'].requires_grad_()
    with pytest.raises(RuntimeError, match='differentiate twice'):
        torch.autograd.grad(kernel(**arguments).sum(), x, create_graph=True)


def test_wrong_weight_is_refused(device):
    arguments = conv_arguments((1, 2, 2, 16), torch.float32, device)
    arguments['weight'] = arguments['weight'][:15]
    with pytest.raises(AssertionError):
        kernel(**arguments)


def channel_norm(channels, device, seed=0, dtype=torch.float32, eps=1e-3):
    """A norm that maps 0 far from 0."""
    make = partial(normal, dtype=torch.float64)
    norm = ChannelNorm(
        weight=make(channels, seed=seed + 10) + 1,
        bias=make(channels, seed=seed + 11) + 2,
        mean=make(channels, seed=seed + 12) - 1,
        var=make(channels, seed=seed + 13).square() + 0.1,
        eps=eps,
    )
    return ChannelNorm(*(v.to(dtype).to(device) for v in norm[:4]), eps)


def normalise(x, norm):
    if norm is None:
        return x
    weight, bias, mean, var = (vector.to(x.dtype) for vector in norm[:4])
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


def inference_reference(
    x,
    weight,
    bias,
    activation,
    norm=None,
    input_norm=None,
    input_activation='none',
):
    x = ACTIVATIONS[input_activation](normalise(x.double(), input_norm))
    y = convolve(x, weight.double(), bias)
    return ACTIVATIONS[activation](normalise(y, norm))


# What the last rounding leaves; the interpreter cuts bfloat16 off.
ROUNDING = {torch.float32: 3e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}


def assert_inference_is_right(arguments, dtype, activation, **options):
    run = partial(
        depthwise_conv3x3_inference,
        **arguments,
        activation=activation,
        dtype=dtype,
        **options,
    )
    with torch.no_grad():
        y = run()
    expected = inference_reference(
        **arguments, activation=activation, **options
    )
    assert y.dtype == dtype and y.shape == expected.shape
    assert y.is_contiguous()
    assert relative_error(y, expected) < ROUNDING[dtype]
    if y.numel() > 0:
        with torch.no_grad():
            again, mean = run(pooled=True)
        assert torch.equal(again, y) and mean.dtype == dtype
        assert relative_error(mean, expected.mean((1, 2))) < ROUNDING[dtype]


@pytest.mark.parametrize('with_norm', [False, True], ids=['', 'norm'])
@pytest.mark.parametrize('with_input_norm', [False, True], ids=['', 'input'])
@pytest.mark.parametrize('input_activation', ['none', 'relu'])
@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_inference(
    activation, input_activation, with_input_norm, with_norm, device
):
    shape = (1, 3, 3, 20)
    arguments = conv_arguments(shape, torch.float32, device)
    assert_inference_is_right(
        arguments,
        torch.float32,
        activation,
        norm=channel_norm(20, device) if with_norm else None,
        input_norm=channel_norm(20, device, 5) if with_input_norm else None,
        input_activation=input_activation,
    )


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_inference_of_each_shape(shape, dtype, device):
    channels = shape[-1]
    arguments = conv_arguments(shape, dtype, device, with_bias=False)
    assert_inference_is_right(
        arguments,
        dtype,
        'relu',
        norm=channel_norm(channels, device),
        input_norm=channel_norm(channels, device, 5),
        input_activation='relu',
    )


@pytest.mark.parametrize('multiprocessors', [1, 10**6], ids=['few', 'many'])
def test_inference_of_any_number_of_programs(
    multiprocessors, device, want_programs
):
    want_programs(multiprocessors)
    arguments = conv_arguments((2, 19, 5, 18), torch.float32, device)
    assert_inference_is_right(
        arguments,
        torch.float32,
        'gelu',
        norm=channel_norm(18, device),
        input_norm=channel_norm(18, device, 5),
    )


def test_inference_by_batch_norm_of_torch(device):
    """On a map of one pixel, whose neighbours are all outside."""
    norm = channel_norm(40, device, eps=1e-5)
    for shape in ((1, 1, 1, 40), (2, 4, 3, 40)):
        arguments = conv_arguments(shape, torch.float32, device)
        y = F.batch_norm(
            arguments['x'].double().permute(0, 3, 1, 2),
            norm.mean.double(),
            norm.var.double(),
            norm.weight.double(),
            norm.bias.double(),
            eps=norm.eps,
        ).permute(0, 2, 3, 1)
        expected = convolve(y, arguments['weight'], arguments['bias'])
        actual = depthwise_conv3x3_inference(
            **arguments,
            activation='none',
            dtype=torch.float32,
            input_norm=norm,
        )
        assert relative_error(actual, expected) < 1e-5


def test_inference_with_other_parameters(device):
    """Half precision, vectors with gaps, half of a wider map, no eps."""
    x = normal(2, 5, 3, 40, dtype=torch.float16, device=device)[..., 20:]
    arguments = conv_arguments(
        x.shape, torch.float16, device, weight_dtype=torch.float16
    )
    norm = channel_norm(20, device, dtype=torch.float16, eps=0.0)
    gaps = [vector.repeat_interleave(2)[::2] for vector in norm[:4]]
    assert_inference_is_right(
        arguments | {'x': x},
        torch.float32,
        'silu',
        norm=norm,
        input_norm=ChannelNorm(*gaps, 0.0),
        input_activation='relu',
    )


@pytest.mark.parametrize('multiprocessors', [1, 10**6], ids=['few', 'many'])
def test_nan_stays_visible(multiprocessors, device, want_programs):
    want_programs(multiprocessors)
    arguments = conv_arguments((2, 19, 5, 18), torch.float16, device)
    arguments['x'][0, 3, 2, 1] = torch.nan
    norm = channel_norm(18, device)
    for input_norm in (None, norm):
        y = depthwise_conv3x3_inference(
            **arguments,
            activation='silu',
            dtype=torch.float16,
            norm=norm,
            input_norm=input_norm,
            input_activation='relu',
        )
        assert y.isnan().sum() == 9
        assert y[0, 2:5, 1:4, 1].isnan().all()


def test_plain_inference_is_the_plain_kernel(device):
    arguments = conv_arguments((2, 7, 9, 35), torch.bfloat16, device)
    options = dict(activation='gelu', dtype=torch.bfloat16)
    y = depthwise_conv3x3_inference(**arguments, **options)
    assert torch.equal(y, depthwise_conv3x3(**arguments, **options))


def test_wrong_norm_is_refused(device):
    arguments = conv_arguments((1, 2, 2, 16), torch.float32, device)
    with pytest.raises(AssertionError):
        depthwise_conv3x3_inference(
            **arguments,
            activation='none',
            dtype=torch.float32,
            norm=channel_norm(15, device),
        )


@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no-bias'])
def test_opcheck(with_bias, device):
    activation = 'silu' if with_bias else 'none'
    arguments = conv_arguments(
        (2, 3, 4, 5), torch.float32, device, with_bias=with_bias
    )
    tensors = [
        None if x is None else x.requires_grad_() for x in arguments.values()
    ]
    torch.library.opcheck(depthwise_conv3x3_op, (*tensors, activation, 'none'))
    tensors = [None if x is None else x.detach() for x in tensors]
    torch.library.opcheck(depthwise_conv3x3_op, (*tensors, activation, 'relu'))
    dy = torch.ones_like(tensors[0])
    torch.library.opcheck(
        torch.ops.evmamba_mm.depthwise_conv3x3_backward,
        (dy, *tensors, activation),
    )


def test_fake_results_are_dense():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 20, 5, 3, dtype=torch.bfloat16)
        x = x.permute(0, 2, 3, 1)
        weight, bias = torch.empty(20, 1, 3, 3), torch.empty(20)
        y = depthwise_conv3x3_op(x, weight, bias, 'silu', 'none')
        dx, sums = torch.ops.evmamba_mm.depthwise_conv3x3_backward(
            y, x, weight, bias, 'silu'
        )
    for z in (y, dx):
        assert z.shape == x.shape and z.dtype == x.dtype
        assert z.is_contiguous()
    assert sums.shape == (200,) and sums.dtype == torch.float32


@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no-bias'])
def test_op_is_the_function(with_bias, device):
    arguments = conv_arguments(
        (2, 3, 5, 16), torch.bfloat16, device, with_bias=with_bias
    )

    def op(x, weight, bias):
        return depthwise_conv3x3_op(x, weight, bias, 'silu', 'none')

    # Ahead of a compiler, which may ask for the graph only.
    compiled = torch.compile(op, fullgraph=True, backend='aot_eager')
    expected = results(kernel, arguments)
    for function in (op, compiled):
        actual = results(function, arguments)
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name


@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no-bias'])
def test_op_with_an_activated_input(with_bias, device):
    x, weight, bias = conv_arguments(
        (2, 3, 5, 16), torch.float32, device, with_bias=with_bias
    ).values()
    y = depthwise_conv3x3_op(x, weight, bias, 'silu', 'relu')
    expected = depthwise_conv3x3_op(x.relu(), weight, bias, 'silu', 'none')
    torch.testing.assert_close(y, expected)
    y = depthwise_conv3x3_op(x.requires_grad_(), weight, bias, 'silu', 'relu')
    with pytest.raises(RuntimeError, match='without gradients'):
        y.sum().backward()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu():
    arguments = conv_arguments((2, 3, 4, 16), torch.float32, 'cuda:1')
    assert_close_to_reference(kernel, reference, arguments)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
def test_more_elements_than_an_int32_counts():
    images = 2**31 // (64 * 64 * 64) + 1
    x = torch.zeros(images, 64, 64, 64, dtype=torch.bfloat16, device='cuda')
    x[-1] = normal(64, 64, 64).to(x)
    weight = normal(64, 1, 3, 3, device='cuda')
    last = x[-1:].clone().requires_grad_()
    expected = reference(last, weight, None, 'none')
    dy = torch.zeros_like(x)
    dy[-1] = normal(64, 64, 64, seed=1).to(x)
    (wanted,) = torch.autograd.grad(expected, last, dy[-1:])
    y = kernel(x.requires_grad_(), weight, None, 'none')
    assert relative_error(y[-1:], expected) < 1e-2
    (dx,) = torch.autograd.grad(y, x, dy)
    assert relative_error(dx[-1:], wanted) < 1e-2
