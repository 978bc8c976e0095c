"""The scan of a map by each backend, and of ready sequences.

A shape is (batch, groups, channels, length, states). The map that has such
groups is square where the length is a square, and the step between the cells
of a group is the root of the number of groups.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..ops import BACKENDS, es2d_scan, selective_scan
from . import modes, projected
from .session import Session

MAP, SEQUENCES = 'es2d_scan', 'selective_scan'
PHASES = ('forward', 'backward')
INPUTS = 2
# Relative error of values and gradients against the naive scan in fp64, on
# inputs that the dtype holds exactly.
TOLERANCES = dict(fp32=1e-5, fp16=5e-3, bf16=4e-2)
# Small, and with groups that are longer than wide, and padded.
CHECKED_MAP = (2, 7, 10)
CHECKED_LENGTH = 67
# Kernels change their ways with the length: it is checked too, up to here,
# where the naive scan begins to need more memory than a GPU may have.
LONGEST_CHECKED = 4096
SMALLEST_NORM = 1e-6


class RedCheck(Exception):
    """A backend whose results are wrong: its speed is of no interest."""


def rank_of(channels: int) -> int:
    """R of a block whose inner channels are twice its own."""
    return math.ceil(channels / 32)


def map_arguments(
    batch: int,
    height: int,
    width: int,
    groups: int,
    channels: int,
    states: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return random arguments of :func:`evmamba_mm.ops.es2d_scan`."""
    sets, rank = min(4, groups), rank_of(channels)
    normal = {'device': device, 'dtype': torch.float32}
    return dict(
        x=torch.randn(batch, height, width, channels, **normal),
        x_proj_weight=torch.randn(sets, rank + 2 * states, channels, **normal)
        / channels**0.5,
        dt_projs_weight=torch.randn(sets, channels, rank, **normal)
        / rank**0.5,
        dt_projs_bias=torch.randn(sets, channels, **normal) - 4,
        A_logs=torch.arange(1, states + 1, **normal)
        .log()
        .repeat(sets * channels, 1),
        Ds=torch.ones(sets * channels, **normal),
    )


def sequence_arguments(
    batch: int,
    groups: int,
    channels: int,
    length: int,
    states: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return random arguments of the scan of ready sequences."""
    wide = groups * channels
    normal = {'device': device, 'dtype': torch.float32}
    return dict(
        u=torch.randn(batch, wide, length, **normal),
        delta=torch.randn(batch, wide, length, **normal) / 4,
        A=-torch.arange(1, states + 1, **normal).repeat(wide, 1),
        B=torch.randn(batch, groups, states, length, **normal),
        C=torch.randn(batch, groups, states, length, **normal),
        D=torch.ones(wide, **normal),
        delta_bias=torch.randn(wide, **normal) - 4,
    )


def step_of(groups: int) -> int:
    """Return the step between the cells of a group.

    Raises:
        ValueError: If the number of groups is no square.
    """
    step = math.isqrt(groups)
    if step * step != groups:
        raise ValueError(
            f'the groups of a shape must be a square number, got {groups}'
        )
    return step


def sides(length: int, step: int) -> tuple[int, int]:
    """Height and width of a map whose groups have this length."""
    rows = math.isqrt(length)
    while length % rows:
        rows -= 1
    return rows * step, length // rows * step


def streams(
    arguments: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The arguments with what flows through in `dtype`, parameters in fp32."""
    flowing = ('x', 'x_proj_weight', 'proj', 'u', 'delta', 'B', 'C')
    return {
        name: value.to(dtype) if name in flowing else value
        for name, value in arguments.items()
    }


def called(kind: str, backend: str, step: int) -> Callable[..., Tensor]:
    """Return the scan of a kind by a backend."""
    if kind == projected.KIND:
        return projected.called(backend, step)
    if kind == MAP:
        return functools.partial(es2d_scan, step_size=step, backend=backend)
    return functools.partial(selective_scan, backend=backend)


def values(
    function: Callable[..., Tensor], arguments: dict[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Output and gradients by name, in fp64."""
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in arguments.items()
    }
    y = function(**leaves)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(y.shape, generator=generator).to(y)
    gradients = torch.autograd.grad((y * weight).sum(), leaves.values())
    named = zip(leaves, gradients, strict=True)
    found = {f'gradient of {name}': value for name, value in named}
    return {
        name: value.detach().double()
        for name, value in {'output': y, **found}.items()
    }


def check(
    kind: str,
    backend: str,
    shape: Sequence[int],
    dtype: str,
    device: torch.device,
) -> None:
    """Compares a backend with the naive scan in fp64.

    Args:
        kind: MAP, SEQUENCES or the scan of a map alone.
        backend: A backend of the scan.
        shape: All but the batch is taken from it; a length of 0 stands for a
            small padded map.
        dtype: Name of the dtype.
        device: Where to run it.

    Raises:
        RedCheck: If the output or a gradient is too far off.
    """
    _, groups, channels, length, states = shape
    step = step_of(groups)
    torch.manual_seed(0)
    if kind == SEQUENCES:
        batch = 1 if length else 2
        sizes = (batch, groups, channels, length or CHECKED_LENGTH, states)
        arguments = sequence_arguments(*sizes, device)
    else:
        sizes = (1, *sides(length, step)) if length else CHECKED_MAP
        arguments = map_arguments(*sizes, groups, channels, states, device)
    if kind == projected.KIND:
        arguments = projected.arguments(arguments)
    arguments = streams(arguments, modes.DTYPES[dtype])
    exact = {name: value.double() for name, value in arguments.items()}
    expected = values(called(kind, 'naive', step), exact, seed=1)
    got = values(called(kind, backend, step), arguments, seed=1)
    for name, value in expected.items():
        scale = value.norm().clamp(min=SMALLEST_NORM)
        error = ((got[name] - value).norm() / scale).item()
        if not error < TOLERANCES[dtype]:
            raise RedCheck(
                f'{kind} by {backend!r} in {dtype}: {name} is off by '
                f'{error:.1e}, at most {TOLERANCES[dtype]:.0e} is right'
            )


def timed(
    kind: str,
    backend: str,
    phase: str,
    shape: Sequence[int],
    dtype: str,
    device: torch.device,
) -> Callable[[int], object]:
    """A function of a call's number; 'backward' is that alone."""
    batch, groups, channels, length, states = shape
    step = step_of(groups)
    function = called(kind, backend, step)
    runs = []
    for _ in range(INPUTS):
        if kind == SEQUENCES:
            arguments = sequence_arguments(*shape, device)
        else:
            arguments = map_arguments(
                batch, *sides(length, step), groups, channels, states, device
            )
        if kind == projected.KIND:
            arguments = projected.arguments(arguments)
        runs.append(streams(arguments, modes.DTYPES[dtype]))
    if phase == 'forward':

        def forward(call):
            with torch.no_grad():
                return function(**runs[call % INPUTS])

        return forward
    leaves = [
        {name: value.requires_grad_() for name, value in run.items()}
        for run in runs
    ]
    outputs = [function(**run) for run in leaves]
    upstream = [torch.randn_like(y) for y in outputs]

    def backward(call):
        i = call % INPUTS
        return torch.autograd.grad(
            outputs[i], leaves[i].values(), upstream[i], retain_graph=True
        )

    return backward


def default_backends(device: torch.device) -> list[tuple[str, str]]:
    """(kind, backend) pairs that are worth comparing on a device."""
    if device.type == 'cuda':
        return [
            (projected.KIND, 'cuda'),
            (MAP, 'cuda'),
            (MAP, 'mamba_ssm'),
            (MAP, 'torch'),
            (SEQUENCES, 'mamba_ssm'),
            (SEQUENCES, 'torch'),
        ]
    return [(MAP, 'torch'), (SEQUENCES, 'torch')]


def check_pair(text: str) -> tuple[str, str]:
    """Splits 'es2d_scan:cuda' into what is scanned and by what.

    Raises:
        ValueError: If one of the two is unknown.
    """
    kind, _, backend = text.partition(':')
    alone = kind == projected.KIND and backend in projected.BACKENDS
    known = kind in (MAP, SEQUENCES) and backend in BACKENDS
    if not (alone or known):
        raise ValueError(
            f'a scan is named {MAP}:BACKEND or {SEQUENCES}:BACKEND with '
            f'BACKEND one of {", ".join(BACKENDS)}, or {projected.KIND}:cuda; '
            f'got {text!r}'
        )
    return kind, backend


def check_all(
    cases: Iterable[tuple], device: torch.device
) -> dict[tuple, Exception]:
    """Checks all cases, on a small map and at their length.

    Returns:
        Errors of those that cannot run here, which their rows will say.

    Raises:
        RedCheck: As :func:`check`.
    """
    failed, checked = {}, {}
    for case in cases:
        pair, shape, dtype = case
        for length in (0, min(shape[3], LONGEST_CHECKED)):
            key = *pair, (1, *shape[1:3], length, shape[4]), dtype
            if key not in checked:
                checked[key] = None
                try:
                    check(*key, device)
                except RedCheck:
                    raise
                except Exception as error:
                    checked[key] = error
            if checked[key] is not None:
                failed[case] = checked[key]
    return failed


def run(
    session: Session,
    pairs: Sequence[tuple[str, str]],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[str],
    phases: Sequence[str],
) -> None:
    """Checks every backend first and times nothing if one is wrong.

    Raises:
        RedCheck: As :func:`check`.
    """
    cases = [(p, s, d) for d in dtypes for s in shapes for p in pairs]
    failed = check_all(cases, session.device)
    for (kind, backend), shape, dtype in cases:
        for phase in phases:

            def make(
                kind=kind,
                backend=backend,
                phase=phase,
                shape=shape,
                dtype=dtype,
            ):
                error = failed.get(((kind, backend), shape, dtype))
                if error is not None:
                    raise error
                return timed(
                    kind, backend, phase, shape, dtype, session.device
                )

            size = 'x'.join(str(side) for side in shape[1:])
            name = f'{kind}:{backend}'
            session.measure(make, name, 'eager', phase, shape[0], size, dtype)
