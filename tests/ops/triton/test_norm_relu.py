from functools import partial

import pytest
import torch
import torch.nn.functional as F

from .cases import DTYPES, assert_close_to_reference, normal, results

pytest.importorskip('triton')

from evmamba_mm.ops.triton.batch_norm import ChannelNorm, statistics
from evmamba_mm.ops.triton.depthwise import (
    conv_plan,
    depthwise_conv3x3,
    gradient_plan,
)
from evmamba_mm.ops.triton.squeeze_excite import squeeze_excite

EPS = 1e-3
# What one rounding leaves; few numbers of plain torch are nearer by chance.
ROUNDING = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 8e-3}
SHAPES = {
    'odd-map': (2, 7, 9, 48),
    'one-cell': (3, 1, 1, 20),
    'prime-channels': (2, 3, 4, 131),
    'wide': (1, 7, 7, 300),
    'long': (1, 31, 17, 24),
    'no-image': (0, 2, 2, 16),
}


@pytest.fixture(autouse=True)
def full_precision():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def norm_arguments(shape, dtype, device):
    """A norm that maps 0 far from 0, and running statistics far from x's."""
    make = partial(normal, shape[-1], device=device)
    return dict(
        x=normal(*shape, dtype=dtype, device=device) * 2 + 3,
        norm_weight=make(seed=10) + 1,
        norm_bias=make(seed=11) + 2,
        mean=make(seed=12) - 1,
        var=make(seed=13).square() + 0.1,
    )


def conv_arguments(shape, dtype, device, with_bias=True):
    channels = shape[-1]
    return dict(
        **norm_arguments(shape, dtype, device),
        weight=normal(channels, 1, 3, 3, device=device, seed=1),
        bias=normal(channels, device=device, seed=2) if with_bias else None,
    )


def gate_arguments(shape, dtype, device):
    channels, hidden = shape[-1], 5
    make = partial(normal, device=device)
    return dict(
        **norm_arguments(shape, dtype, device),
        reduce_weight=make(hidden, channels, seed=1) / channels**0.5,
        reduce_bias=make(hidden, seed=2),
        expand_weight=make(channels, hidden, seed=3) / hidden**0.5,
        expand_bias=make(channels, seed=4),
    )


def normed(x, norm_weight, norm_bias, mean, var, own):
    """In fp32 at least, by a map that is stored in the dtype of x."""
    wide, narrow = torch.promote_types(x.dtype, torch.float32), x.dtype
    x = x.to(wide)
    if own:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    y = (x - mean) * (var + EPS).rsqrt() * norm_weight + norm_bias
    return y.relu().to(narrow).to(wide)


def plain_conv(x, norm_weight, norm_bias, mean, var, weight, bias, own):
    u = normed(x, norm_weight, norm_bias, mean, var, own).permute(0, 3, 1, 2)
    bias = None if bias is None else bias.to(u)
    y = F.conv2d(u, weight.to(u), bias, padding=1, groups=u.shape[1])
    return y.permute(0, 2, 3, 1).to(x.dtype)


def plain_gates(x, norm_weight, norm_bias, mean, var, own, **parameters):
    u = normed(x, norm_weight, norm_bias, mean, var, own)
    reduce_weight, reduce_bias, expand_weight, expand_bias = (
        parameter.to(u) for parameter in parameters.values()
    )
    hidden = F.linear(u.mean((1, 2)), reduce_weight, reduce_bias).relu()
    gate = F.linear(hidden, expand_weight, expand_bias).sigmoid()
    return (u * gate[:, None, None]).to(x.dtype)


def channel_norm(x, weight, bias, mean, var, own):
    mean, var = statistics(x, mean, var, own, 0.1) if own else (mean, var)
    return ChannelNorm(weight, bias, mean, var, EPS, own)


def conv(x, norm_weight, norm_bias, mean, var, weight, bias, own):
    # What is given is moved towards the batch's.
    mean, var = mean.detach().clone(), var.detach().clone()
    norm = channel_norm(x, norm_weight, norm_bias, mean, var, own)
    return depthwise_conv3x3(x, weight, bias, 'none', x.dtype, norm)


def gates(x, norm_weight, norm_bias, mean, var, own, **parameters):
    mean, var = mean.detach().clone(), var.detach().clone()
    norm = channel_norm(x, norm_weight, norm_bias, mean, var, own)
    return squeeze_excite(x, **parameters, dtype=x.dtype, norm_relu=norm)


FUNCTIONS = {
    'conv': (conv, plain_conv, conv_arguments),
    'gates': (gates, plain_gates, gate_arguments),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


@pytest.mark.parametrize('own', [False, True], ids=['given', 'own'])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernels(function, shape, dtype, own, device):
    run, plain, make = function
    if own and shape[0] == 0:
        pytest.skip('a batch without an image has no statistics')
    assert_close_to_reference(
        partial(run, own=own),
        partial(plain, own=own),
        make(shape, dtype, device),
        fixed=('mean', 'var'),
        least=ROUNDING[dtype],
    )


@pytest.mark.parametrize('own', [False, True], ids=['given', 'own'])
def test_a_program_of_many_rows(function, own, device, want_programs):
    """Strips of several rows, and several tiles of an image's pixels."""
    want_programs(1)
    run, plain, make = function
    shape = (3, 37, 13, 70)
    assert conv_plan(shape, 'none').rows > 4
    assert gradient_plan(shape, 'none').rows > 4
    assert_close_to_reference(
        partial(run, own=own),
        partial(plain, own=own),
        make(shape, torch.float32, device),
        fixed=('mean', 'var'),
    )


@pytest.mark.parametrize('own', [False, True], ids=['given', 'own'])
def test_a_mean_far_from_zero(function, own, device):
    run, plain, make = function
    arguments = make((4, 7, 9, 24), torch.float32, device)
    arguments['x'] = arguments['x'] + 1e3
    arguments['mean'] = arguments['mean'] + 1e3
    # In training the statistics themselves are rounded.
    assert_close_to_reference(
        partial(run, own=own),
        partial(plain, own=own),
        arguments,
        fixed=('mean', 'var'),
        least=1e-4 if own else 1e-5,
    )


def test_a_convolution_without_bias(device):
    arguments = conv_arguments((2, 5, 6, 40), torch.float32, device, False)
    assert_close_to_reference(
        partial(conv, own=True),
        partial(plain_conv, own=True),
        arguments,
        fixed=('mean', 'var'),
    )


def test_other_layouts(function, device):
    run, plain, make = function
    wide = normal(2, 6, 7, 20, device=device)
    channels_first = normal(2, 20, 5, 3, device=device).permute(0, 2, 3, 1)
    for x in (channels_first, wide[:, 1:, 2:], wide.transpose(1, 2)):
        arguments = make(x.shape, torch.float32, device) | {'x': x}
        assert_close_to_reference(
            partial(run, own=True),
            partial(plain, own=True),
            arguments,
            fixed=('mean', 'var'),
        )


def test_without_gradients_the_values_are_the_same(function, device):
    run, _, make = function
    arguments = make((2, 5, 7, 24), torch.float32, device)
    expected = results(
        partial(run, own=True), arguments, fixed=('mean', 'var')
    )['output']
    with torch.no_grad():
        assert torch.equal(run(**arguments, own=True), expected)


def test_nan_stays(function, device):
    run, _, make = function
    arguments = make((2, 5, 7, 24), torch.float32, device)
    arguments['x'][0, 2, 3, 4] = torch.nan
    with torch.no_grad():
        y = run(**arguments, own=False)
    assert y[0, ..., 4].isnan().any() and not y[1].isnan().any()


def test_the_gradient_of_a_nan_passes_the_relu(function, device):
    run, plain, make = function
    arguments = make((2, 5, 7, 24), torch.float32, device)
    arguments['x'][0, 2, 3, 4] = torch.nan
    actual, expected = (
        results(partial(f, own=False), arguments, fixed=('mean', 'var'))
        for f in (run, plain)
    )
    assert expected['norm_weight'].isnan().any()
    torch.testing.assert_close(
        *(actual, expected), rtol=1e-4, atol=1e-4, equal_nan=True
    )


def test_the_normalised_map_is_not_kept(function, device):
    run, _, make = function
    arguments = make((2, 14, 14, 64), torch.float32, device)
    kept = []
    arguments['x'].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x) or x, lambda x: x
    ):
        run(**arguments, own=True)
    maps = {x.data_ptr() for x in kept if x.shape == arguments['x'].shape}
    assert maps == {arguments['x'].data_ptr()}


def test_second_derivatives_are_refused(function, device):
    run, _, make = function
    arguments = make((2, 3, 3, 16), torch.float32, device)
    arguments['x'].requires_grad_()
    y = run(**arguments, own=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        torch.autograd.grad(y.sum(), arguments['x'], create_graph=True)
