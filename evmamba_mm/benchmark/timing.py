"""How long a function takes, and how much memory."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP = 5
# Calls with other inputs than the first, before anything is timed.
OTHERS = 4
# A repeat lasts about this long, so that starting a clock costs nothing.
REPEAT_SECONDS = 0.05


@dataclass(frozen=True)
class Measured:
    """Median milliseconds of a call, and GiB at the most, if counted."""

    ms: float
    peak_gib: float | None


def device_of(name: str | None) -> torch.device:
    """Return the device of a name, by default a GPU where there is one.

    Raises:
        ValueError: If it is not there.
    """
    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {name!r} is not there: {reason}') from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'--device must be a cpu or cuda, got {name!r}')
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a device, as the rows have it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    plural = '' if threads == 1 else 's'
    return f'{platform.machine()} CPU, {threads} thread{plural}'


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


class Clock:
    """Time between two points of the work that a device is given."""

    def __init__(self, device: torch.device):
        self.device = device

    def mark(self) -> object:
        """Return a point of the work."""
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, first: object, last: object) -> float:
        """Return the milliseconds between two points."""
        if self.device.type != 'cuda':
            return (last - first) * 1e3
        last.synchronize()
        return first.elapsed_time(last)


def measure(
    function: Callable[[int], object], device: torch.device, repeats: int
) -> Measured:
    """Call a function until its time is known.

    It is called a few times first, by one number: that is when memory is
    counted. A repeat is a run of calls between two marks, with the device at
    rest before and after.

    Args:
        function: Takes the number of the call, to choose an input by.
        device: Where it works.
        repeats: Runs that the median is taken of.
    """
    clock = Clock(device)
    for _ in range(WARM_UP):
        function(0)
    synchronize(device)
    peak = peak_gib(device)
    for call in range(OTHERS):
        function(call)
    synchronize(device)
    start = time.perf_counter()
    function(0)
    synchronize(device)
    once = max(time.perf_counter() - start, 1e-6)
    calls = max(1, round(REPEAT_SECONDS / once))
    times = []
    for _ in range(repeats):
        synchronize(device)
        first = clock.mark()
        for call in range(calls):
            function(call)
        last = clock.mark()
        times.append(clock.ms(first, last) / calls)
    return Measured(statistics.median(times), peak)


def forget_peak(device: torch.device) -> None:
    """Counts memory anew. A CUDA graph takes its own when it is captured."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Return the most GiB in use since :func:`forget_peak`, or None."""
    if device.type != 'cuda':
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


def held_gib(device: torch.device) -> float | None:
    """Return the GiB that torch holds, those of CUDA graphs among them.

    mmengine's log forgets the peak each time that it is written.
    """
    if device.type != 'cuda':
        return None
    return torch.cuda.memory_reserved(device) / 2**30
