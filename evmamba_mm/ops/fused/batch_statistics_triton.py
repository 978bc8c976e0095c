"""Kernels of the statistics of each channel of a map.

They are taken in two steps: each program leaves those of its rows, and a
small kernel merges them in a fixed order.

Shape letters: T tokens, C channels, P parts.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import load_rows
from .tiles import as_rows, pipeline_stages

# Eight programs on each of the 132 processors of a large GPU, so that all of
# those that leave a part run at one time.
MOST_PROGRAMS = 1056
_PER_THREAD = 16
WARPS = 2
_WARPS_OF_MERGE = 4
# Many columns would leave large parts, few would cut up the reads.
_MOST_COLUMNS = 64
# Tile of the parts that are merged, and the most rows of it.
_PART_TILE = 2048
_MOST_PARTS = 256


class Sweep(NamedTuple):
    """How programs go over a map together, from its start to its end."""

    rows: int
    columns: int
    chunks: int
    slots: int
    turns: int


@functools.lru_cache(maxsize=1024)
def sweep(tokens: int, channels: int, warps: int) -> Sweep:
    """Share out a map among programs that leave a part each.

    Args:
        tokens: T, at least 1.
        channels: C.
        warps: Warps of a program.

    Returns:
        Rows and columns of a tile, chunks of columns, programs of a chunk,
        and the most tiles of a program.
    """
    power = 1 << (channels - 1).bit_length()
    columns = min(max(16, power), _MOST_COLUMNS)
    rows = 32 * warps * _PER_THREAD // columns
    chunks = -(-channels // columns)
    tiles = -(-tokens // rows)
    turns = -(-tiles // max(1, MOST_PROGRAMS // chunks))
    return Sweep(rows, columns, chunks, -(-tiles // turns), turns)


@functools.lru_cache(maxsize=1024)
def _part_tile(parts: int) -> tuple[int, int]:
    """Rows and columns that a program merges at a time."""
    rows = min(max(32, triton.next_power_of_2(parts)), _MOST_PARTS)
    return rows, _PART_TILE // rows


@triton.jit
def place(C: tl.constexpr, COLUMNS: tl.constexpr):
    """Number of a program and of programs along the rows, and columns."""
    chunks: tl.constexpr = (C + COLUMNS - 1) // COLUMNS
    slot = tl.program_id(0) // chunks
    slots = tl.num_programs(0) // chunks
    columns = (tl.program_id(0) % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    return slot, slots, columns


@triton.jit
def _row_count(slot, slots, tokens, ROWS: tl.constexpr):
    """Rows of a program that takes every ``slots``-th tile."""
    tiles = tl.cdiv(tokens, ROWS)
    lacking = tiles * ROWS - tokens
    count = tl.cdiv(tiles - slot, slots) * ROWS
    count -= tl.where((tiles - 1) % slots == slot, lacking, 0)
    return count.to(tl.float32)


@triton.jit
def _not_negative(x):
    # A maximum would hide a NaN.
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def _statistics_kernel(
    parts_ptr,
    x_ptr,
    tokens,
    x_stride,
    turns,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean and sum of squares around it of the rows of each program."""
    slot, slots, columns = place(C, COLUMNS)
    inside = columns < C
    # The distance to one of the values keeps the digits of the variance
    # however far the mean is from zero.
    start = slot.to(tl.int64)
    row = x_ptr + start * ROWS * x_stride
    origin = tl.load(row + columns, inside, other=0.0).to(tl.float32)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for turn in tl.range(turns, num_stages=STAGES):
        rows = (start + turn * slots) * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        moved = tl.where(mask, x - origin[None, :], 0.0)
        sums += moved
        squares += moved * moved
    total = tl.sum(sums, axis=0)
    mean = total / _row_count(slot, slots, tokens, ROWS)
    places = parts_ptr + slot * (2 * C) + columns
    tl.store(places, origin + mean, mask=inside)
    around = tl.sum(squares, axis=0) - total * mean
    tl.store(places + C, _not_negative(around), mask=inside)


@triton.jit
def _follow(places, values, momentum, inside):
    """Move running statistics towards those of a batch."""
    old = tl.load(places, inside, other=0.0).to(tl.float32)
    new = (1.0 - momentum) * old + momentum * values
    tl.store(places, new.to(places.dtype.element_ty), mask=inside)


@triton.jit
def _merge_kernel(
    mean_ptr,
    variance_ptr,
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    parts_ptr,
    tokens,
    parts,
    momentum,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean and variance from those of the parts, by Chan's formula."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < C
    origin = tl.load(parts_ptr + columns, inside, other=0.0)
    sums = tl.zeros((PARTS, COLUMNS), tl.float32)
    squares = tl.zeros((PARTS, COLUMNS), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & inside[None, :]
        mean = load_rows(parts_ptr, part, 2 * C, columns, mask)
        around = load_rows(parts_ptr + C, part, 2 * C, columns, mask)
        moved = tl.where(mask, mean - origin[None, :], 0.0)
        weighted = moved * _row_count(part, parts, tokens, ROWS)[:, None]
        sums += weighted
        squares += around + weighted * moved
    total = tl.sum(sums, axis=0)
    distance = total / tokens
    around = _not_negative(tl.sum(squares, axis=0) - total * distance)
    mean = origin + distance
    tl.store(mean_ptr + columns, mean, mask=inside)
    tl.store(variance_ptr + columns, around / tokens, mask=inside)
    if running_mean_ptr is not None:
        unbiased = around / (tokens - 1)
        _follow(running_mean_ptr + columns, mean, momentum, inside)
        _follow(running_var_ptr + columns, unbiased, momentum, inside)
    if batches_ptr is not None:
        # Triton 3.0 does not heed the mask of a single number.
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)


def statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    batches: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the statistics; see :func:`.batch_norm.batch_norm_act`.

    Returns:
        Mean and biased variance of each channel, (C,) each in fp32.
    """
    channels = x.shape[-1]
    mean, variance = (
        torch.empty(channels, dtype=torch.float32, device=x.device)
        for _ in range(2)
    )
    x = as_rows(x, (-1, channels))
    tokens = x.shape[0]
    if tokens == 0:
        if batches is not None:
            batches.add_(1)
        return mean.zero_(), variance.zero_()
    running = [
        None if old is None else old.contiguous()
        for old in (running_mean, running_var)
    ]
    plan = sweep(tokens, channels, WARPS)
    stages = pipeline_stages(plan.rows * plan.columns, x)
    tile = _part_tile(plan.slots)
    parts = x.new_empty((plan.slots, 2, channels), dtype=torch.float32)
    launch(
        _statistics_kernel,
        (plan.slots * plan.chunks, 1, 1),
        (parts, x),
        (tokens, x.stride(0), plan.turns),
        (channels, plan.rows, plan.columns, stages),
        WARPS,
    )
    launch(
        _merge_kernel,
        (-(-channels // tile[1]), 1, 1),
        (mean, variance, *running, batches, parts),
        (tokens, plan.slots, float(momentum)),
        (channels, plan.rows, *tile),
        _WARPS_OF_MERGE,
    )
    for old, new in zip((running_mean, running_var), running, strict=True):
        if new is not old:
            old.copy_(new)
    return mean, variance
