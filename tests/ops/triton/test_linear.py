import pytest
import torch
import torch.nn.functional as F

from .cases import DTYPES, assert_close_to_reference, normal, results

pytest.importorskip('triton', reason='triton is not installed')

from evmamba_mm.ops.triton.linear import linear, split_linear

SHAPES = {
    'one-pixel': (1, 1, 1, 40),
    'one-row': (2, 1, 7, 5),
    'odd': (2, 13, 5, 35),
    'no-image': (0, 3, 4, 16),
    'one-token': (24,),
}


def arguments(shape, outputs, dtype=torch.float32, device='cpu'):
    channels = shape[-1]
    return dict(
        x=normal(*shape, dtype=dtype, device=device),
        weight=normal(outputs, channels, dtype=dtype, device=device, seed=1),
    )


def with_bias(shape, outputs, dtype=torch.float32, device='cpu'):
    bias = normal(outputs, dtype=dtype, device=device, seed=2)
    return arguments(shape, outputs, dtype, device) | dict(bias=bias)


def layouts(device):
    """Slices, a part of the rows, and channels-first memory."""
    x = normal(2, 20, 5, 40, device=device)
    return x[..., 20:], x[..., ::2], x[:, 1:], x.permute(0, 2, 3, 1)


# Gradients of the result: channels-first memory, a slice, and a single number.
GRADIENTS = {
    'transposed': lambda y: y.mT.contiguous().square().sum(),
    'slice': lambda y: y[..., ::2].square().sum(),
    'one-number': lambda y: y.sum(),
}


def both_halves(x, weight):
    return torch.cat(split_linear(x, weight), dim=-1)


def gradients(function, loss, values):
    leaves = [x.detach().requires_grad_() for x in values.values()]
    return torch.autograd.grad(loss(function(*leaves)), leaves)


def assert_same_gradients(function, reference, loss, values):
    found = gradients(function, loss, values)
    for pair in zip(found, gradients(reference, loss, values), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_split_linear(shape, dtype, device):
    values = arguments(shape, 22, dtype, device)
    assert_close_to_reference(both_halves, F.linear, values)


def test_split_linear_of_other_layouts(device):
    for x in layouts(device):
        values = arguments(x.shape, 12, device=device) | dict(x=x)
        assert_close_to_reference(both_halves, F.linear, values)


@pytest.mark.parametrize('loss', GRADIENTS.values(), ids=GRADIENTS)
def test_split_linear_with_strided_gradients(loss, device):
    values = arguments((2, 3, 5, 6), 12, device=device)
    assert_same_gradients(
        lambda *a: sum(loss(half) for half in split_linear(*a)),
        lambda *a: sum(loss(half) for half in F.linear(*a).chunk(2, -1)),
        lambda y: y,
        values,
    )


def test_one_half_alone_has_a_gradient(device):
    values = arguments((2, 3, 5, 6), 12, device=device)
    for i in (0, 1):
        assert_same_gradients(
            lambda *a, i=i: split_linear(*a)[i],
            lambda *a, i=i: F.linear(*a).chunk(2, -1)[i],
            lambda y: y.square().sum(),
            values,
        )


@pytest.mark.parametrize('fixed', ['x', 'weight'])
def test_split_linear_with_a_frozen_argument(fixed, device):
    values = arguments((2, 3, 5, 6), 12, device=device)
    assert_close_to_reference(both_halves, F.linear, values, fixed=(fixed,))


def test_halves_are_contiguous_with_gradients_alone(device):
    values = arguments((2, 3, 5, 6), 32, device=device)
    assert all(half.is_contiguous() for half in split_linear(**values))
    with torch.no_grad():
        halves = split_linear(**values)
    whole = F.linear(**values)
    assert torch.equal(torch.cat(halves, -1), whole)
    assert halves[0].stride() == halves[1].stride() == whole.stride()


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_linear(shape, dtype, device):
    values = with_bias(shape, 11, dtype, device)
    assert_close_to_reference(linear, F.linear, values)


@pytest.mark.parametrize('loss', GRADIENTS.values(), ids=GRADIENTS)
def test_linear_with_strided_gradients(loss, device):
    values = with_bias((2, 3, 5, 24), 16, device=device)
    actual, expected = (
        gradients(function, loss, values) for function in (linear, F.linear)
    )
    for value, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('fixed', ['x', 'weight', 'bias'])
def test_linear_with_a_frozen_argument(fixed, device):
    values = with_bias((2, 3, 5, 24), 16, device=device)
    assert_close_to_reference(linear, F.linear, values, fixed=(fixed,))


@pytest.mark.parametrize('function', [both_halves, linear])
@pytest.mark.parametrize('grads', [True, False], ids=['grads', 'no grads'])
def test_weights_in_fp32_under_autocast(function, grads, device):
    make = arguments if function is both_halves else with_bias
    values = make((2, 3, 5, 24), 16, torch.bfloat16, device)
    wide = {
        name: x if name == 'x' else x.float() for name, x in values.items()
    }
    with (
        torch.set_grad_enabled(grads),
        torch.autocast(torch.device(device).type, torch.bfloat16),
    ):
        y, expected = function(**wide), function(**values)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


def test_two_runs_are_the_same(device):
    values = with_bias((3, 13, 5, 24), 11, device=device)
    first, second = (results(linear, values) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
