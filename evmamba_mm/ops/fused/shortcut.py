"""Calls of custom ops that leave out the dispatcher where nobody listens.

A custom op shows a kernel to torch.compile, to traces and to dispatch modes
as one step. In a plain eager run none of them is there, and the way through
the dispatcher takes the CPU longer than the launch itself.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch.autograd.function import once_differentiable


def lazy_kernels(name: str) -> Callable[[], ModuleType]:
    """Function that gives a file of kernels, imported when it is first called.

    These files are the first to import Triton, which may be absent. An import
    statement in each call takes the CPU longer than this.

    Args:
        name: Of the file in this folder, without its ending.
    """

    @functools.cache
    def load() -> ModuleType:
        return importlib.import_module(f'.{name}', __package__)

    return load


def watched() -> bool:
    """Whether something has to see the custom op itself."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def short_call(op: Callable, kernel: Callable) -> Callable:
    """Call of an op that needs no gradient.

    Args:
        op: The custom op.
        kernel: The function that it was made of.

    Returns:
        Function of the same positional arguments.
    """

    def call(*arguments):
        return op(*arguments) if watched() else kernel(*arguments)

    return call


def short_differentiable(
    op: Callable, kernel: Callable, keep: Callable, differentiate: Callable
) -> Callable:
    """Call of an op with a gradient, which is also given to the op.

    Args:
        op: The custom op.
        kernel: The function that it was made of.
        keep: Its ``setup_context``, as ``register_autograd`` takes it.
        differentiate: Its backward, as ``register_autograd`` takes it.

    Returns:
        Function of the same positional arguments.
    """
    op.register_autograd(differentiate, setup_context=keep)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            output = kernel(*arguments)
            keep(ctx, arguments, output)
            return output

        # A second derivative would be silently zero: no graph sees a launch.
        backward = staticmethod(once_differentiable(differentiate))

    def call(*arguments):
        if watched():
            return op(*arguments)
        # Without gradients a Function would only cost its bookkeeping.
        run = Direct.apply if torch.is_grad_enabled() else kernel
        return run(*arguments)

    return call
