"""What the callers of kernels are told of tracers and transforms."""

import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from evmamba_mm.ops import has_transforms, is_traced
from evmamba_mm.ops.tracing import has_derivative_transforms


def states():
    return is_traced(), has_transforms(), has_derivative_transforms()


def seen_by(run):
    """States while ``run`` calls a function of one tensor."""
    seen = []

    def function(x):
        seen.append(states())
        return x.sum()

    run(function)
    return seen[0]


X = torch.ones(2)


def test_a_plain_call():
    assert states() == (False, False, False)
    with torch.no_grad():
        assert states() == (False, False, False)


def test_tracers():
    traced = (True, False, False)
    assert seen_by(lambda f: torch.jit.trace(f, (X,))) == traced
    with FlopCounterMode(display=False):
        assert states() == traced
    compiled = torch.compile(
        lambda x: x + is_traced(), backend='eager', fullgraph=True
    )
    assert compiled(X).tolist() == [2, 2]


def test_transforms():
    assert seen_by(lambda f: torch.func.vmap(f)(X)) == (False, True, False)
    derivative = (False, True, True)
    assert seen_by(lambda f: torch.func.grad(f)(X)) == derivative
    assert seen_by(lambda f: torch.func.jvp(f, (X,), (X,))) == derivative
    assert seen_by(lambda f: torch.func.vmap(torch.func.grad(f))(X)) == (
        derivative
    )
    with forward_ad.dual_level():
        assert states() == derivative
    assert states() == (False, False, False)
