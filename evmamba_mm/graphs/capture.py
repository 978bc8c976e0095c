"""How a call is captured."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..ops.tracing import is_traced

# Calls before a capture, which compile kernels and choose algorithms.
_WARM_UP = 3


def autocast_dtype() -> torch.dtype | None:
    """Dtype of the autocast that is on for CUDA, None where it is off."""
    if not torch.is_autocast_enabled('cuda'):
        return None
    return torch.get_autocast_dtype('cuda')


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to a dtype, or none, in which a call can be captured."""
    # A cached cast would be captured once and never follow its parameter.
    return torch.autocast(
        'cuda', dtype=dtype, enabled=dtype is not None, cache_enabled=False
    )


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for all captures: memory is shared within a stream alone.
    return torch.cuda.Stream(device)


def warm_up(run: Callable, device: torch.device) -> torch.cuda.Stream:
    """Run a few times on a stream, on which the capture is to follow."""
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    return stream


@contextmanager
def capture(
    graph: torch.cuda.CUDAGraph,
    stream: torch.cuda.Stream,
    pool: tuple | None = None,
) -> Iterator[None]:
    """Context that captures what is launched in it.

    Args:
        graph: Into this graph.
        stream: On this stream.
        pool: With the memory of another graph, which is replayed before.
    """
    try:
        # Other threads, of a data loader or of NCCL, go on meanwhile with what
        # is forbidden in a capture.
        with torch.cuda.graph(
            graph, pool=pool, stream=stream, capture_error_mode='thread_local'
        ):
            yield
    except BaseException:
        # A capture that fails leaves torch's generator in it, and the next
        # random number outside would be an error.
        generator = torch.cuda.default_generators[stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise


def is_recorded() -> bool:
    """Whether a tracer or another capture records this call."""
    return is_traced() or torch.cuda.is_current_stream_capturing()
