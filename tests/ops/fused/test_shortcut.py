import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evmamba_mm.ops.fused import layer_norm, pooled_layer_norm, scale_add

from .kernel_cases import assert_same, normal, results

FLOAT = torch.float32


class Names(TorchDispatchMode):
    """Notes the ops that run."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def arguments_of(name, device):
    x = normal(2, 3, 5, 48, dtype=FLOAT, device=device)
    weight, bias = normal(2, 48, dtype=FLOAT, device=device)
    if name == 'scale_add':
        return dict(residual=x, a=x + 1, gate_a=normal(2, 48).to(x), b=x - 1)
    return dict(x=x, weight=weight, bias=bias)


OPS = {
    'layer_norm': layer_norm,
    'pooled_norm': pooled_layer_norm,
    'scale_add': scale_add,
}


@pytest.mark.parametrize('name', OPS)
def test_both_ways_give_the_same(name, device):
    arguments = arguments_of(name, device)
    short = results(OPS[name], arguments, 'triton', FLOAT)
    with Names() as names:
        watched = results(OPS[name], arguments, 'triton', FLOAT)
    assert_same(short, watched)
    assert {name, f'{name}_backward'} <= names.seen


@pytest.mark.parametrize('name', OPS)
def test_second_derivative_is_refused(name, device):
    leaves = {
        key: x.requires_grad_()
        for key, x in arguments_of(name, device).items()
    }
    y = OPS[name](**leaves, backend='triton')
    # The residual has no second derivative by this op, every map has one.
    x = leaves['a' if name == 'scale_add' else 'x']
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        gradient.sum().backward()


@pytest.mark.filterwarnings(
    'ignore::FutureWarning', 'ignore::torch.jit.TracerWarning'
)
def test_trace_shows_the_op(device):
    arguments = arguments_of('layer_norm', device)

    def function(*tensors):
        return layer_norm(*tensors, backend='triton')

    trace = torch.jit.trace(function, tuple(arguments.values()))
    assert 'evmamba_mm::layer_norm' in str(trace.inlined_graph)
