"""Compares the scans and whole backbones with naive fp64, at random.

    python -m tests.faults.scans --seed 0 --count 2000 --out FILE

On a GPU the kernels' compilation takes most of the time, which ``--processes``
shares.

Each trial draws sizes, dtypes, memory layouts, options and a backend, and
compares output, gradients and forward-mode derivatives. It holds if they are
as near to fp64 as plain torch in the same dtype is, up to a factor, or if the
arguments are refused by the documented error. A trial is named by its seed:
``--only 17`` repeats that one. On a machine with a GPU it runs there.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import random
import sys
import time

import torch
from rich.progress import track
from torch import Tensor

if not torch.cuda.is_available():
    # Read when Triton is imported.
    os.environ.setdefault('TRITON_INTERPRET', '1')

from evmamba_mm.ops import es2d_scan, selective_scan, ss2d_scan
from evmamba_mm.ops.scan.geometry import DIRECTIONS
from evmamba_mm.ops.scan.mamba_scan import mamba_kernel_installed
from evmamba_mm.ops.scan.numba_scan import numba_installed

from .backbones import backbone_trial
from .compare import Wrong, compare, results
from .record import Counts, write_record

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
# The CUDA kernels are compiled for each; (channels, states, rank).
CUDA_SIZES = ((24, 16, 2), (40, 7, 3), (96, 16, 6))


class Draw:
    """What a trial draws, from its seed alone."""

    def __init__(self, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.tensors = torch.Generator().manual_seed(seed)

    def size(self, most: int, least: int = 1) -> int:
        """A size, small ones more often."""
        low = self.numbers.random() < 0.3
        return self.numbers.randint(
            least, max(least, most // 4 if low else most)
        )

    def choose(self, values):
        return self.numbers.choice(values)

    def chance(self, share: float) -> bool:
        return self.numbers.random() < share

    def normal(
        self, *shape: int, dtype: torch.dtype, scale: float = 1.0
    ) -> Tensor:
        """Normal numbers that the dtype holds, in a random memory layout."""
        x = torch.randn(*shape, generator=self.tensors, dtype=torch.float64)
        x = (x * scale).to(dtype).to(DEVICE)
        if x.dim() > 1 and self.chance(0.3):
            order = list(range(x.dim()))
            self.numbers.shuffle(order)
            back = [order.index(i) for i in range(x.dim())]
            x = x.permute(order).contiguous().permute(back)
        return x


def sequence_arguments(draw: Draw) -> dict[str, Tensor | None]:
    batch = 0 if draw.chance(0.03) else draw.size(3)
    groups, channels = draw.size(4), draw.size(9)
    states = draw.size(20)
    length = 0 if draw.chance(0.02) else draw.size(70)
    if draw.chance(0.03):
        length *= 8
    wide = groups * channels
    dtype = torch.float64 if draw.chance(0.15) else draw.choose(DTYPES)
    make = functools.partial(draw.normal, dtype=dtype)
    own = (
        dtype
        if draw.chance(0.3)
        else torch.promote_types(dtype, torch.float32)
    )
    wide_make = functools.partial(draw.normal, dtype=own)
    A = -wide_make(wide, states).abs() * draw.choose((0.01, 1, 3, 30))
    if draw.chance(0.05):
        # Growing states, which stay small over a short sequence.
        A, length = A.abs().clamp(max=0.2), min(length, 20)
    return dict(
        u=make(batch, wide, length),
        delta=make(batch, wide, length, scale=draw.choose((0.1, 1, 5))),
        A=A,
        B=make(batch, groups, states, length),
        C=make(batch, groups, states, length),
        D=wide_make(wide) if draw.chance(0.7) else None,
        delta_bias=wide_make(wide) if draw.chance(0.7) else None,
    )


def sequence_trial(draw: Draw) -> str:
    """One scan of sequences; return the backend's name."""
    arguments = sequence_arguments(draw)
    softplus = draw.chance(0.8)
    if not softplus:
        arguments['delta'] = arguments['delta'].abs()
        bias = arguments['delta_bias']
        arguments['delta_bias'] = None if bias is None else bias.abs()
    backends = ['naive', 'torch', 'auto']
    if numba_installed():
        backends += ['numba'] * 2
    if DEVICE == 'cuda' and mamba_kernel_installed():
        backends += ['mamba_ssm'] * 2
    backend = draw.choose(backends)
    run = functools.partial(
        selective_scan, delta_softplus=softplus, backend=backend
    )
    naive = functools.partial(
        selective_scan, delta_softplus=softplus, backend='naive'
    )
    check(draw, run, naive, arguments, backend)
    return f'selective_scan, {backend}'


def map_trial(draw: Draw) -> str:
    """One scan of a feature map; return the function's and backend's name."""
    backends = ['naive', 'torch', 'auto']
    if numba_installed():
        backends += ['numba'] * 2
    if DEVICE == 'cuda':
        backends = ['torch', 'cuda', 'cuda', 'cuda', 'auto']
    backend = draw.choose(backends)
    cross = draw.chance(0.4)
    sizes = draw.size(12), draw.size(17), draw.size(4)
    if DEVICE == 'cuda' and backend in ('cuda', 'auto'):
        sizes = draw.choose(CUDA_SIZES)
    channels, states, rank = sizes
    directions = DIRECTIONS
    if cross and backend != 'cuda' and draw.chance(0.5):
        count = draw.size(5)
        directions = tuple(draw.choose(DIRECTIONS) for _ in range(count))
    step = draw.size(5)
    sets = len(directions) if cross else min(4, step**2)
    shape = (draw.size(3), draw.size(14), draw.size(14), channels)
    dtype = draw.choose(DTYPES)
    own = dtype if draw.chance(0.2) else torch.float32
    make = functools.partial(draw.normal, dtype=own)
    arguments = dict(
        x=draw.normal(*shape, dtype=dtype),
        x_proj_weight=make(sets, rank + 2 * states, channels) * channels**-0.5,
        dt_projs_weight=make(sets, channels, rank),
        dt_projs_bias=make(sets, channels),
        A_logs=make(sets * channels, states),
        Ds=make(sets * channels),
    )
    scan = (
        functools.partial(ss2d_scan, directions=directions)
        if cross
        else functools.partial(es2d_scan, step_size=step)
    )
    run = functools.partial(scan, backend=backend)
    naive = functools.partial(scan, backend='naive')
    check(draw, run, naive, arguments, backend)
    return f'{"ss2d_scan" if cross else "es2d_scan"}, {backend}'


def check(draw: Draw, run, naive, arguments, backend: str) -> None:
    """Compare output and gradients, or one of them, or a derivative."""
    given = {k: v for k, v in arguments.items() if v is not None}
    mode = draw.choose(('forward', 'gradients', 'gradients', 'jvp'))
    if backend == 'numba':
        mode = draw.choose(('forward', 'forward', 'forward', 'gradients'))
        served = DEVICE == 'cpu' and all(
            v.dtype == torch.float32 for v in given.values()
        )
        if mode == 'gradients' or not served:
            refused(run, arguments, mode)
            return
    if backend in ('cuda', 'mamba_ssm'):
        if any(v.dtype == torch.float64 for v in given.values()):
            refused(run, arguments, mode)
            return
        if mode == 'jvp':
            refused(run, arguments, mode)
            return
    compare(run, naive, arguments, mode)


def refused(run, arguments, mode: str) -> None:
    """Fail unless a ValueError says why the arguments are not served."""
    try:
        results(run, arguments, mode)
    except ValueError:
        return
    raise Wrong(f'{mode} was neither refused nor meant to be served')


def trial(seed: int) -> tuple[str, str | None]:
    """Name of what is tried, and what is wrong with it or None."""
    # Reference and kernel are compared in the dtype that they say.
    torch.backends.cudnn.allow_tf32 = False
    draw = Draw(seed)
    kind = draw.choose(
        (sequence_trial,) * 9 + (map_trial,) * 9 + (backbone_trial,) * 2
    )
    name = kind.__name__
    try:
        name = kind(draw)
    except Wrong as error:
        return name, str(error)
    except Exception as error:
        return name, f'{type(error).__name__}: {error}'
    return name, None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seed', type=int, default=0, help='of the first')
    parser.add_argument('--count', type=int, default=2000, help='of trials')
    parser.add_argument('--only', type=int, help='repeat the trial of a seed')
    parser.add_argument('--seconds', type=float, help='stop after these')
    parser.add_argument('--processes', type=int, default=1, metavar='N')
    parser.add_argument('--out', help='data file of the counts')
    args = parser.parse_args(argv)
    seeds = range(args.seed, args.seed + args.count)
    if args.only is not None:
        seeds = [args.only]
    start, counts = time.monotonic(), Counts()
    with contextlib.ExitStack() as stack:
        run = map
        if args.processes > 1:
            # A forked child cannot use the GPU.
            pool = multiprocessing.get_context('spawn').Pool(args.processes)
            run = stack.enter_context(pool).imap
        for seed, (name, wrong) in track(
            zip(seeds, run(trial, seeds), strict=True), 'trials', len(seeds)
        ):
            counts.add(name, wrong is None)
            if wrong:
                print(f'seed {seed}, {name}: {wrong}'[:500], flush=True)
            if args.seconds and time.monotonic() - start > args.seconds:
                break
    # So many, also where the time was up first.
    command = (
        f'python -m tests.faults.scans --seed {args.seed} '
        f'--count {counts.tried.total()} --out FILE'
    )
    wanted = f'as near to naive fp64 as plain torch, or refused, on {DEVICE}'
    return write_record(args.out, command, wanted, counts)


if __name__ == '__main__':
    sys.exit(main())
