"""Sums over the parts that programs leave, and over the tokens of a map.

A long sum runs in two steps, so that its order is fixed: each program leaves
a part, and a small kernel adds those up.

Shape letters: G groups, P parts, N numbers of a part, M tokens, C channels,
K rows.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import as_rows, launch, load_rows, pipeline_stages

# Elements of a tile: all of them are loaded at one time.
_PART_TILE = 8192
# A memory sector, and the rows beside which wider lines are read.
_MIN_COLUMNS = 8
_MANY_ROWS = 256
# Warps of a program that sweeps over a map.
WARPS = 2
# Wider tiles would leave large parts, narrower ones would cut up the reads.
_MAX_COLUMNS = 64


class Sweep(NamedTuple):
    """How programs go over a map together, from its start to its end.

    Args:
        rows: Tokens of a tile.
        columns: Channels of a tile.
        chunks: Tiles side by side that cover the channels.
        programs: Programs of a chunk; each leaves one part.
        steps: Most tiles of a program.
    """

    rows: int
    columns: int
    chunks: int
    programs: int
    steps: int


@functools.lru_cache(maxsize=1024)
def sweep(tokens: int, channels: int, warps: int) -> Sweep:
    """Share out a map among programs that leave a part each.

    Args:
        tokens: M, at least 1.
        channels: C.
        warps: Warps of a program.
    """
    power = 1 << (channels - 1).bit_length()
    columns = min(max(16, power), _MAX_COLUMNS)
    rows = 32 * warps * common.LIMITS.per_thread // columns
    chunks = -(-channels // columns)
    tiles = -(-tokens // rows)
    steps = -(-tiles // max(1, common.LIMITS.partial_sums // chunks))
    return Sweep(rows, columns, chunks, -(-tiles // steps), steps)


@functools.lru_cache(maxsize=1024)
def _part_tile(groups: int, parts: int, width: int) -> tuple[int, int, int]:
    """Rows and columns that a program adds up at a time, and its warps."""
    rows = triton.next_power_of_2(parts)
    columns = _PART_TILE // min(rows, _MANY_ROWS)
    columns = max(min(columns, triton.next_power_of_2(width)), _MIN_COLUMNS)
    # Narrow tiles are read less well, but by more multiprocessors.
    enough = 2 * common.LIMITS.multiprocessors
    while columns > _MIN_COLUMNS and groups * -(-width // columns) < enough:
        columns //= 2
    rows = max(1, min(rows, _PART_TILE // columns))
    warps = rows * columns // (32 * common.LIMITS.per_thread)
    return rows, columns, max(1, warps)


@triton.jit
def place(C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Index of a program among those of its chunk, their number, columns."""
    chunks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0) // chunks
    programs = tl.num_programs(0) // chunks
    columns = (tl.program_id(0) % chunks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return program, programs, columns


@triton.jit(do_not_specialize=['parts'])
def _sum_kernel(
    sums_ptr,
    parts_ptr,
    parts,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """``sums[g, n] = sum_p parts[g, p, n]``.

    The first ``TRANSPOSED`` rows of a part (TRANSPOSED + 1, C) are written
    transposed, as (C, TRANSPOSED); the last row stays behind them.
    """
    chunks = tl.cdiv(width, BLOCK_N)
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = (tl.program_id(0) % chunks).to(tl.int64)
    columns = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < width
    parts_ptr += group * parts * width
    sums = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = (part < parts)[:, None] & inside[None, :]
        places = parts_ptr + part[:, None] * width + columns[None, :]
        sums += tl.load(places, mask=mask, other=0.0)
    if TRANSPOSED > 0:
        channels = width // (TRANSPOSED + 1)
        moved = columns % channels * TRANSPOSED + columns // channels
        columns = tl.where(columns < TRANSPOSED * channels, moved, columns)
    total = tl.sum(sums, axis=0).to(sums_ptr.dtype.element_ty)
    tl.store(sums_ptr + group * width + columns, total, mask=inside)


# parts[p, c] = sum of x[m, c] over the tokens m of program p
@triton.jit
def _channel_sums_kernel(
    parts_ptr,
    x_ptr,
    tokens,
    x_stride,
    steps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    program, programs, columns = place(C, BLOCK_C)
    inside = columns < C
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    start = program.to(tl.int64)
    for step in tl.range(steps, num_stages=STAGES):
        rows = (start + step * programs) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        sums += load_rows(x_ptr, rows, x_stride, columns, mask)
    places = parts_ptr + program * C + columns
    tl.store(places, tl.sum(sums, axis=0), mask=inside)


def _sum(
    sums: Tensor, parts: Tensor, groups: int, count: int, transposed: int = 0
) -> Tensor:
    """Write the sums of parts (G, P, N)."""
    if count == 0:
        return sums.zero_()
    if sums.numel() > 0:
        width = sums.numel() // groups
        rows, columns, warps = _part_tile(groups, count, width)
        launch(
            _sum_kernel,
            (groups * -(-width // columns), 1, 1),
            (sums, parts),
            (count, width),
            (rows, columns, transposed),
            warps,
        )
    return sums


def sum_parts(
    parts: Tensor, dim: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sum over one dimension in a fixed order; not differentiable.

    Args:
        parts: Dense tensor of any shape, in fp32 or narrower.
        dim: Dimension to sum over, not negative.
        dtype: Dtype of the result.

    Returns:
        The sums without that dimension; a view where there is one part.
    """
    shape = parts.shape
    if shape[dim] == 1:
        return parts.squeeze(dim).to(dtype)
    sums = torch.empty(
        shape[:dim] + shape[dim + 1 :], dtype=dtype, device=parts.device
    )
    return _sum(sums, parts, math.prod(shape[:dim]), shape[dim])


def sum_parts_turned(parts: Tensor) -> Tensor:
    """Sum over parts, with all rows but the last written transposed.

    Args:
        parts: Dense tensor (P, K + 1, C) in fp32.

    Returns:
        Sums of the first K rows as (C, K), then those of the last row as
        (C,), flat in one dimension.
    """
    count, rows, channels = parts.shape
    sums = torch.empty(
        rows * channels, dtype=torch.float32, device=parts.device
    )
    return _sum(sums, parts, 1, count, rows - 1)


def channel_sums(x: Tensor) -> Tensor:
    """Sum each channel over all tokens.

    Args:
        x: Tokens (..., C).

    Returns:
        Sums (C,) in fp32.
    """
    channels = x.shape[-1]
    if x.numel() == 0:
        return x.new_zeros(channels, dtype=torch.float32)
    x = as_rows(x, (-1, channels))
    plan = sweep(x.shape[0], channels, WARPS)
    stages = pipeline_stages(plan.rows * plan.columns, x)
    parts = torch.empty(
        (plan.programs, channels), dtype=torch.float32, device=x.device
    )
    launch(
        _channel_sums_kernel,
        (plan.programs * plan.chunks, 1, 1),
        (parts, x),
        (x.shape[0], x.stride(0), plan.steps),
        (channels, plan.rows, plan.columns, stages),
        WARPS,
    )
    return sum_parts(parts)
