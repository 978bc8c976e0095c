"""Kernels of the backward of two maps' gates and of their gated sum.

The maps and the gradient are read twice: for the sums over tokens that the
gates' gradients are made of, and for the gradients of the maps, which go by
way of the gates as well and so have to wait for these.

Shape letters: N two maps, B batch, H W map, C channels, P programs of a batch
entry.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import load_rows, store_rows
from .pooled_norm_triton import by_mean
from .tiles import image_rows, pipeline_stages, row_tile, split_rows

_MOST_PARTIAL_SUMS = 1056
# Of many batch entries there are more: what ends the sums goes through those
# of one entry in turn, and of all entries at once.
_FEW_PARTIAL_SUMS = 32
# Of a program, unless the card would stay empty or there are too many sums.
_STEPS = 4
# 32 numbers of each map a thread.
_ELEMENTS, _WARPS = 2048, 2


class MapRows(NamedTuple):
    """Maps as images of evenly spaced rows with dense channels.

    Args:
        maps: Of one shape.
        strides: Elements from one image and from one row of a map to the
            next, map by map.
        shape: B, H W and C.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    shape: tuple[int, int, int]


@triton.jit
def _sum_kernel(
    sums_ptr,
    dout_ptr,
    a_ptr,
    b_ptr,
    tokens,
    programs,
    dout_batch_stride,
    dout_stride,
    a_batch_stride,
    a_stride,
    b_batch_stride,
    b_stride,
    steps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    program = tl.program_id(0)
    entry = (program // programs).to(tl.int64)
    first = (program % programs).to(tl.int64) * steps * ROWS
    dout_ptr += entry * dout_batch_stride
    a_ptr += entry * a_batch_stride
    b_ptr += entry * b_batch_stride
    sum_a = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_b = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        dout = load_rows(dout_ptr, rows, dout_stride, columns, mask)
        sum_a += dout * load_rows(a_ptr, rows, a_stride, columns, mask)
        sum_b += dout * load_rows(b_ptr, rows, b_stride, columns, mask)
    places = sums_ptr + program.to(tl.int64) * C + columns
    tl.store(places, tl.sum(sum_a, axis=0), mask=inside)
    places += tl.num_programs(0).to(tl.int64) * C
    tl.store(places, tl.sum(sum_b, axis=0), mask=inside)


@triton.jit
def _maps_kernel(
    da_ptr,
    db_ptr,
    dout_ptr,
    a_ptr,
    b_ptr,
    factors_ptr,
    levels_ptr,
    batch,
    tokens,
    programs,
    dout_batch_stride,
    dout_stride,
    a_batch_stride,
    a_stride,
    b_batch_stride,
    b_stride,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    program = tl.program_id(0)
    entry = (program // programs).to(tl.int64)
    first = (program % programs).to(tl.int64) * steps * ROWS
    place = entry * C + columns
    factor_a = tl.load(factors_ptr + place, inside, other=0.0)
    level_a = tl.load(levels_ptr + place, inside, other=0.0)
    place = (entry + batch) * C + columns
    factor_b = tl.load(factors_ptr + place, inside, other=0.0)
    level_b = tl.load(levels_ptr + place, inside, other=0.0)
    dout_ptr += entry * dout_batch_stride
    a_ptr += entry * a_batch_stride
    b_ptr += entry * b_batch_stride
    da_ptr += entry * tokens * C
    db_ptr += entry * tokens * C
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        dout = load_rows(dout_ptr, rows, dout_stride, columns, mask)
        a = load_rows(a_ptr, rows, a_stride, columns, mask)
        b = load_rows(b_ptr, rows, b_stride, columns, mask)
        da = dout * factor_a[None, :] + by_mean(a, level_a, inside, eps, C)
        store_rows(da_ptr, rows, C, columns, mask, da)
        db = dout * factor_b[None, :] + by_mean(b, level_b, inside, eps, C)
        store_rows(db_ptr, rows, C, columns, mask, db)


def map_rows(*maps: Tensor) -> MapRows:
    """Maps (B, H, W, C) as rows, copied only where they do not lie so."""
    batch, height, width, channels = maps[0].shape
    shape = (batch, height * width, channels)
    pairs = [image_rows(x, shape) for x in maps]
    strides = tuple(size for _, pair in pairs for size in pair)
    return MapRows(tuple(x for x, _ in pairs), strides, shape)


def sum_products(rows: MapRows) -> Tensor:
    """Partial sums over tokens of a gradient times each of two maps.

    Args:
        rows: Of the gradient and of both maps, B of at least 1.

    Returns:
        Tensor of shape (N, B, P, C) in fp32; what belongs together is the
        sum over P.
    """
    batch, tokens, channels = rows.shape
    tile = row_tile(channels, _ELEMENTS)
    programs, steps = split_rows(
        tokens,
        tile.rows,
        at_least=_STEPS * tile.rows,
        groups=batch,
        programs=max(-(-_MOST_PARTIAL_SUMS // batch), _FEW_PARTIAL_SUMS),
    )
    sums = torch.empty(
        (2, batch, programs, channels),
        dtype=torch.float32,
        device=rows.maps[0].device,
    )
    launch(
        _sum_kernel,
        (batch * programs, 1, 1),
        (sums, *rows.maps),
        (tokens, programs, *rows.strides, steps),
        (channels, tile.rows, tile.columns),
        _WARPS,
    )
    return sums


def maps_backward(
    dmaps: tuple[Tensor, Tensor],
    rows: MapRows,
    factors: Tensor,
    levels: Tensor,
    eps: float,
) -> None:
    """Write the gradients of both maps.

    Args:
        dmaps: Where to, (B, H, W, C) each, dense.
        rows: Of the gradient of the gated sum and of both maps, B of at
            least 1.
        factors: See :class:`.gates_backward_triton.GateGradients`.
        levels: See there.
        eps: Added to the variance of the norm before the gates.
    """
    batch, tokens, channels = rows.shape
    tile = row_tile(channels, _ELEMENTS)
    stages = pipeline_stages(tile.rows * tile.columns, *rows.maps)
    programs, steps = split_rows(
        tokens, tile.rows, at_least=_STEPS * tile.rows, groups=batch
    )
    launch(
        _maps_kernel,
        (batch * programs, 1, 1),
        (*dmaps, *rows.maps, factors, levels),
        (batch, tokens, programs, *rows.strides, steps, float(eps)),
        (channels, tile.rows, tile.columns, stages),
        _WARPS,
    )
