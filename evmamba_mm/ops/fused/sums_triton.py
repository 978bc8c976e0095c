"""Kernel that adds up the parts that programs of other kernels have left.

Shape letters: G groups, P parts, W numbers of a part, K rows, C channels.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

# All of a tile is on its way at one time.
_TILE = 8192
_PER_THREAD = 16
# A memory sector, and the rows beside which wider lines are read.
_LEAST_COLUMNS = 8
_MANY_ROWS = 256
# Two programs on each of the 132 processors of a large GPU.
_ENOUGH_PROGRAMS = 264


@functools.lru_cache(maxsize=1024)
def _tile(groups: int, parts: int, width: int) -> tuple[int, int, int]:
    """Rows and columns that a program adds up at a time, and its warps."""
    rows = triton.next_power_of_2(parts)
    columns = _TILE // min(rows, _MANY_ROWS)
    columns = max(min(columns, triton.next_power_of_2(width)), _LEAST_COLUMNS)
    # What is narrow is read less well, but by more processors.
    while (
        columns > _LEAST_COLUMNS
        and groups * -(-width // columns) < _ENOUGH_PROGRAMS
    ):
        columns //= 2
    rows = max(1, min(rows, _TILE // columns))
    return rows, columns, max(1, rows * columns // (32 * _PER_THREAD))


@triton.jit(do_not_specialize=['parts'])
def _sum_kernel(
    sums_ptr,
    parts_ptr,
    parts,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Sum of each number over the parts of a group.

    Numbers of ``TURNED`` rows, behind which another row comes, are written
    as columns.
    """
    chunks = tl.cdiv(width, COLUMNS)
    group = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = (tl.program_id(0) % chunks).to(tl.int64)
    columns = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    parts_ptr += group * parts * width
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, parts, ROWS):
        part = first + tl.arange(0, ROWS).to(tl.int64)
        mask = (part < parts)[:, None] & inside[None, :]
        places = parts_ptr + part[:, None] * width + columns[None, :]
        sums += tl.load(places, mask=mask, other=0.0)
    if TURNED > 0:
        channels = width // (TURNED + 1)
        turned = columns % channels * TURNED + columns // channels
        columns = tl.where(columns < TURNED * channels, turned, columns)
    total = tl.sum(sums, axis=0).to(sums_ptr.dtype.element_ty)
    tl.store(sums_ptr + group * width + columns, total, mask=inside)


def _launch(
    sums: Tensor, parts: Tensor, groups: int, count: int, turned: int = 0
) -> Tensor:
    """Write the sums of parts (G, P, W)."""
    if count == 0:
        return sums.zero_()
    if sums.numel() > 0:
        width = sums.numel() // groups
        rows, columns, warps = _tile(groups, count, width)
        launch(
            _sum_kernel,
            (groups * -(-width // columns), 1, 1),
            (sums, parts),
            (count, width),
            (rows, columns, turned),
            warps,
        )
    return sums


def add_up(
    parts: Tensor, dim: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Launch the sum over one dimension, in a fixed order.

    Args:
        parts: Dense tensor of any shape, in fp32 or narrower.
        dim: Dimension that goes, from the front.
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
    return _launch(sums, parts, math.prod(shape[:dim]), shape[dim])


def add_up_turned(parts: Tensor) -> Tensor:
    """Launch the sum over parts, and lay out most of their rows as columns.

    Args:
        parts: Dense tensor (P, K + 1, C) in fp32.

    Returns:
        Sums of the first K rows as (C, K), then those of the last row as
        (C,), all in one dimension.
    """
    count, rows, channels = parts.shape
    sums = torch.empty(
        rows * channels, dtype=torch.float32, device=parts.device
    )
    return _launch(sums, parts, 1, count, rows - 1)
