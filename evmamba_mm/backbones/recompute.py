"""Activation checkpointing that updates BatchNorm's statistics once."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _scratch_statistics(block: nn.Module) -> Iterator[None]:
    """Let BatchNorm update temporary copies of its statistics."""
    norms = [
        m for m in block.modules() if isinstance(m, _BatchNorm) and m.training
    ]
    originals = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, originals, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def checkpoint_block(
    block: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor]
) -> Tensor:
    """Run a block and forget its activations until the backward.

    The second forward would update running statistics again, so that training
    with and without recomputation would differ; here it does not.

    Args:
        block: Module of one tensor to one tensor.
        x: Its input.
        run: Calls it.
    """
    if torch.compiler.is_compiling():
        # The compiler recomputes without a second update, and does not trace
        # through contexts of Python.
        return checkpoint(run, block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _scratch_statistics(block)

    return checkpoint(run, block, x, use_reentrant=False, context_fn=contexts)
