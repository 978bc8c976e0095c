"""Two parts of a block at once, in a CUDA graph.

Kernels that compute and kernels that read, or that are too small for a GPU,
take less time side by side than one after the other. A graph starts them
without a launch; elsewhere a second stream would cost more than it saves.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

A = TypeVar('A')
B = TypeVar('B')


@functools.cache
def _beside(stream: torch.cuda.Stream) -> tuple[torch.cuda.Stream, ...]:
    """Streams for what runs at once with a stream's work.

    The same each time: memory is shared within a stream alone. On the first
    one each call waits for the given stream, so that it may write where a
    former result was; on the second one autograd decides who waits.
    """
    return torch.cuda.Stream(stream.device), torch.cuda.Stream(stream.device)


def at_once(
    x: Tensor,
    first: Callable[[], A],
    second: Callable[[], B],
    shared: Sequence[Tensor] = (),
) -> tuple[A, B]:
    """Call two functions, at once where a CUDA graph is captured.

    Args:
        x: Says where both run.
        first: Runs on the current stream.
        second: Runs on another stream.
        shared: If autograd sees the calls: tensors that the backward of the
            second one reads, which the first one or an earlier call made.

    Returns:
        Both results.
    """
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return first(), second()
    here = torch.cuda.current_stream(x.device)
    there = _beside(here)[bool(shared)]
    there.wait_stream(here)
    with torch.cuda.stream(there):
        b = second()
    a = first()
    here.wait_stream(there)
    if torch.is_grad_enabled():
        # The backward lets go of a tensor that the other stream still reads.
        for tensor in shared:
            tensor.record_stream(there)
        if isinstance(b, Tensor):
            b.record_stream(here)
    return a, b
