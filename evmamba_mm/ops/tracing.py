"""Tells whether a tracer or a transform sees the present call.

Kernels without a dispatcher entry are invisible to a tracer and to a
transform, so their callers ask here first.
"""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

_Transform = torch._C._functorch.TransformType
_DERIVATIVES = (_Transform.Grad, _Transform.Jvp)
_any_global_hook = getattr(nn_module, '_has_any_global_hook', lambda: False)


def constant_in_graphs(function: Callable) -> Callable:
    """Let the compiler call a function once, while it traces.

    That is torch.compiler.assume_constant_result, which would import the
    compiler along with this package.

    Args:
        function: Of arguments that are no tensors.
    """
    function._dynamo_marked_constant = True
    return function


def is_traced() -> bool:
    """Tell whether a compiler, a tracer or a dispatch mode sees each op."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def has_global_hooks() -> bool:
    """Tell whether a hook is registered for the calls of all modules."""
    # Torch answers with a dict of its own.
    return bool(_any_global_hook())


def has_transforms() -> bool:
    """Tell whether a torch.func transform or forward-mode AD is active."""
    return bool(_transforms()) or forward_ad._current_level >= 0


def has_derivative_transforms() -> bool:
    """Tell whether derivatives need more than ordinary backward calls.

    That is forward-mode AD (torch.func.jvp, dual numbers), for which a custom
    op would silently drop the tangent, or torch.func.grad and its kin, which
    refuse custom ops.
    """
    if forward_ad._current_level >= 0:
        return True
    return any(x.key() in _DERIVATIVES for x in _transforms())


def refuse_forward_mode(name: str) -> None:
    """Raise where a custom backward would drop the tangent of a gradient.

    Args:
        name: Name of the op, for the message.

    Raises:
        RuntimeError: If forward-mode AD is active.
    """
    if torch.compiler.is_compiling():
        return
    is_jvp = any(x.key() == _Transform.Jvp for x in _transforms())
    if is_jvp or forward_ad._current_level >= 0:
        raise RuntimeError(
            f'the backward of {name} has no forward-mode derivative; run the '
            'forward under forward-mode AD too, or use the naive backend'
        )


def _transforms() -> list:
    return torch._C._functorch.get_interpreter_stack() or []
