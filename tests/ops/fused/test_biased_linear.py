import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused.biased_linear import _BiasedLinear, biased_linear

from ..scan_cases import relative_error, value_and_gradients
from .kernel_cases import DTYPES, assert_kernel_is_right, assert_same, normal
from .kernel_cases import results as results_of

SHAPES = {
    'one-pixel': (1, 1, 1, 40),
    'one-row': (2, 1, 7, 5),
    'odd': (2, 13, 5, 35),
    'no-image': (0, 3, 4, 16),
}


def arguments_of(shape, dtype=torch.float64, device='cpu', outputs=11):
    channels = shape[-1]
    return dict(
        x=normal(*shape, dtype=dtype, device=device),
        weight=normal(outputs, channels, dtype=dtype, device=device, seed=1),
        bias=normal(outputs, dtype=dtype, device=device, seed=2),
    )


@pytest.fixture
def linear(monkeypatch):
    """The op by a backend."""

    def run(x, weight, bias, backend):
        monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', backend)
        return biased_linear(x, weight, bias)

    return run


@pytest.fixture
def runs(monkeypatch):
    """Counts the runs of the written gradient."""
    seen = []
    forward = _BiasedLinear.forward

    def counted(ctx, *arguments):
        seen.append(arguments)
        return forward(ctx, *arguments)

    monkeypatch.setattr(_BiasedLinear, 'forward', staticmethod(counted))
    return seen


def test_written_gradient_equals_autograds():
    expected = value_and_gradients(F.linear, arguments_of((2, 3, 5, 6)))
    actual = value_and_gradients(
        lambda x, weight, bias: _BiasedLinear.apply(x, weight, bias),
        arguments_of((2, 3, 5, 6)),
    )
    assert torch.equal(actual[0], expected[0])
    for name, gradient in actual[1].items():
        assert relative_error(gradient, expected[1][name]) < 1e-12, name


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(shape, dtype, linear, device, runs):
    assert_kernel_is_right(linear, arguments_of(shape, dtype, device), dtype)
    assert len(runs) == 1


def test_map_and_gradient_with_strides(linear, device):
    x = normal(2, 20, 5, 40, dtype=torch.float32, device=device)
    views = (x[..., :20], x[..., ::2], x[:, 1:], x.permute(0, 2, 3, 1))
    for view in views:
        arguments = arguments_of(view.shape, torch.float32, device)
        arguments['x'] = view
        assert_kernel_is_right(linear, arguments, torch.float32)
        leaves = [x.detach().requires_grad_() for x in arguments.values()]
        found = []
        for backend in ('triton', 'torch'):
            y = linear(*leaves, backend)
            # A gradient of stride 0, half the channels, and channels first.
            mine = (y.sum(), y[..., ::2].sum(), y.mT.contiguous().square())
            found.append(
                torch.autograd.grad(sum(m.sum() for m in mine), leaves)
            )
        for kernel, twin in zip(*found, strict=True):
            assert relative_error(kernel, twin) < 1e-5


@pytest.mark.parametrize('wanted', ['x', 'weight', 'bias'])
def test_only_what_is_asked_for(wanted, linear, device, runs, monkeypatch):
    sums = []
    column_sums = biased_linear.__globals__['column_sums']
    monkeypatch.setitem(
        biased_linear.__globals__,
        'column_sums',
        lambda x: sums.append(x) or column_sums(x),
    )
    arguments = arguments_of((2, 3, 5, 6), torch.float32, device)
    arguments[wanted].requires_grad_()
    y = linear(**arguments, backend='triton')
    (gradient,) = torch.autograd.grad(y.square().sum(), [arguments[wanted]])
    y = F.linear(*arguments.values())
    (expected,) = torch.autograd.grad(y.square().sum(), [arguments[wanted]])
    assert relative_error(gradient, expected) < 1e-6
    assert len(runs) == len(sums) == (wanted == 'bias')


def test_without_a_bias_or_gradients(linear, device, runs):
    arguments = arguments_of((2, 3, 5, 6), torch.float32, device)
    for x in arguments.values():
        x.requires_grad_()
    with torch.no_grad():
        y = linear(**arguments, backend='triton')
    assert torch.equal(y, F.linear(*arguments.values()))
    arguments['bias'] = None
    y = linear(**arguments, backend='triton')
    assert torch.equal(y, F.linear(*arguments.values()))
    linear(**arguments_of((2, 3, 5, 6)), backend='auto')
    assert not runs


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast(dtype, linear, device, runs):
    arguments = arguments_of((2, 3, 5, 6), torch.float32, device)
    arguments['x'] = arguments['x'].to(dtype)
    leaves = [x.requires_grad_() for x in arguments.values()]
    with torch.autocast(device, torch.bfloat16):
        y = linear(*leaves, backend='triton')
        expected = F.linear(*leaves)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    # A map that autocast casts has its gradient by autograd.
    assert len(runs) == (dtype == torch.bfloat16)
    found = [
        torch.autograd.grad(z.square().sum(), leaves) for z in (y, expected)
    ]
    for leaf, actual, other in zip(leaves, *found, strict=True):
        assert actual.dtype == leaf.dtype
        assert relative_error(actual, other) < 2e-2


def test_two_runs_are_the_same(linear, device):
    arguments = arguments_of((3, 13, 5, 24), torch.float32, device)
    assert_same(
        *(results_of(linear, arguments, 'triton', torch.float32) for _ in '12')
    )


def test_compiles_into_one_graph(device, monkeypatch, runs):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    compiled = torch.compile(
        biased_linear, fullgraph=True, backend='aot_eager'
    )
    arguments = arguments_of((2, 3, 5, 6), torch.float32, device)
    actual = value_and_gradients(compiled, arguments)
    assert not runs
    expected = value_and_gradients(F.linear, arguments)
    for name, gradient in actual[1].items():
        assert relative_error(gradient, expected[1][name]) < 1e-6, name
