"""Kernels of the mean over a map of its normalised tokens.

Each map is read once and no normalised map is written: each program sums its
rows, and one small kernel over all maps ends the sums and does the affine
part, which commutes with the mean. The backward is one kernel for the maps
and one for the parameters. Two maps of one layout share a launch.

Shape letters: N maps, B batch, H W map, C channels, P programs of a batch
entry.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import load_rows, normalise, store_rows
from .tiles import (
    as_rows,
    empty_gradient,
    pipeline_stages,
    row_tile,
    split_rows,
)

_MOST_PARTIAL_SUMS = 1056
_SUM_ELEMENTS = 1024
# Few channels a program: what ends the sums has little else to share out.
_END_COLUMNS = 32


@triton.jit
def _entry_of(first_ptr, second_ptr, entry, batch):
    """Map that a batch entry belongs to, and its place among that map's."""
    if second_ptr is not None:
        if entry >= batch:
            first_ptr = second_ptr
            entry -= batch
    return first_ptr, entry


@triton.jit
def _sum_kernel(
    sums_ptr,
    first_ptr,
    second_ptr,
    batch,
    tokens,
    programs,
    batch_stride,
    row_stride,
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
    x_ptr, entry = _entry_of(first_ptr, second_ptr, entry, batch)
    x_ptr += entry * batch_stride
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, row_stride, columns, mask)
        normed, _ = normalise(x, inside, eps, C)
        # Without an eps a row outside is not zero any more.
        total += tl.where(mask, normed, 0.0)
    places = sums_ptr + program.to(tl.int64) * C + columns
    tl.store(places, tl.sum(total, axis=0), mask=inside)


@triton.jit
def _affine_kernel(
    out_ptr,
    mean_ptr,
    sums_ptr,
    weight_ptr,
    bias_ptr,
    tokens,
    programs,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < C
    entry = tl.program_id(0).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, programs, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < programs)[:, None] & inside[None, :]
        place = sums_ptr + entry * programs * C
        total += load_rows(place, rows, C, columns, mask)
    mean = tl.sum(total, axis=0) / tokens
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    place = entry * C + columns
    tl.store(mean_ptr + place, mean, mask=inside)
    tl.store(out_ptr + place, mean * weight + bias, mask=inside)


@triton.jit
def _parameters_kernel(
    dweight_ptr,
    dbias_ptr,
    dout_ptr,
    mean_ptr,
    entries,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < C
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, entries, ROWS):
        rows = first + tl.arange(0, ROWS).to(tl.int64)
        mask = (rows < entries)[:, None] & inside[None, :]
        dout = load_rows(dout_ptr, rows, C, columns, mask)
        dweight += dout * load_rows(mean_ptr, rows, C, columns, mask)
        dbias += dout
    tl.store(dweight_ptr + columns, tl.sum(dweight, axis=0), mask=inside)
    tl.store(dbias_ptr + columns, tl.sum(dbias, axis=0), mask=inside)


@triton.jit
def by_mean(x, level, inside, eps, C: tl.constexpr):
    """Gradient of tokens by way of the mean of the normalised ones."""
    normed, rstd = normalise(x, inside, eps, C)
    along = tl.sum(level[None, :] * normed, axis=1) / C
    return (level[None, :] - normed * along[:, None]) * rstd[:, None]


@triton.jit
def _backward_kernel(
    dfirst_ptr,
    dsecond_ptr,
    dout_ptr,
    weight_ptr,
    first_ptr,
    second_ptr,
    batch,
    tokens,
    programs,
    batch_stride,
    row_stride,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    program = tl.program_id(0)
    entry = (program // programs).to(tl.int64)
    first = (program % programs).to(tl.int64) * steps * ROWS
    # All tokens of a map have the same gradient here.
    dout = tl.load(dout_ptr + entry * C + columns, inside, other=0.0)
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    dnormed = dout * weight / tokens
    centred = tl.where(inside, dnormed - tl.sum(dnormed, axis=0) / C, 0.0)
    dx_ptr, _ = _entry_of(dfirst_ptr, dsecond_ptr, entry, batch)
    x_ptr, entry = _entry_of(first_ptr, second_ptr, entry, batch)
    x_ptr += entry * batch_stride
    dx_ptr += entry * tokens * C
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, row_stride, columns, mask)
        dx = by_mean(x, centred, inside, eps, C)
        store_rows(dx_ptr, rows, C, columns, mask, dx)


def _one_layout(first: Tensor, second: Tensor | None) -> bool:
    """Whether one launch can read all maps."""
    return second is None or (
        first.dtype == second.dtype and first.stride() == second.stride()
    )


def _sum(
    sums: Tensor, first: Tensor, second: Tensor | None, eps: float, steps: int
) -> None:
    """Write sums of the normalised tokens of maps (B, H W, C)."""
    batch, tokens, channels = first.shape
    maps, programs = 1 if second is None else 2, sums.shape[-2]
    tile = row_tile(channels, _SUM_ELEMENTS)
    stages = pipeline_stages(tile.rows * tile.columns, first)
    launch(
        _sum_kernel,
        (maps * batch * programs, 1, 1),
        (sums, first, second),
        (batch, tokens, programs, *first.stride()[:2], steps, float(eps)),
        (channels, tile.rows, tile.columns, stages),
        tile.warps,
    )


def sum_maps(first: Tensor, second: Tensor | None, eps: float) -> Tensor:
    """Partial sums of the normalised tokens of one or two maps.

    Args:
        first: Map (B, H, W, C), B of at least 1.
        second: Another one of this shape, or None.
        eps: Added to the variance.

    Returns:
        Tensor of shape (N, B, P, C) in fp32; what belongs together is the
        sum over P.
    """
    batch, height, width, channels = first.shape
    shape = (batch, height * width, channels)
    programs, steps = split_rows(
        shape[1],
        row_tile(channels, _SUM_ELEMENTS).rows,
        at_least=16,
        groups=batch,
        waves=2,
        programs=-(-_MOST_PARTIAL_SUMS // batch),
    )
    maps = 1 if second is None else 2
    sums = torch.empty(
        (maps, batch, programs, channels),
        dtype=torch.float32,
        device=first.device,
    )
    first = as_rows(first, shape)
    second = None if second is None else as_rows(second, shape)
    if _one_layout(first, second):
        _sum(sums, first, second, eps, steps)
    else:
        _sum(sums[0], first, None, eps, steps)
        _sum(sums[1], second, None, eps, steps)
    return sums


def _end(
    out: Tensor,
    mean: Tensor,
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: int,
) -> None:
    """Write means and what the affine part makes of them, (N B, C)."""
    entries, channels = out.shape
    tile = row_tile(min(channels, _END_COLUMNS))
    launch(
        _affine_kernel,
        (entries, -(-channels // tile.columns), 1),
        (out, mean, sums, weight.contiguous(), bias.contiguous()),
        (tokens, sums.shape[2]),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )


def forward(
    first: Tensor,
    second: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Launch the forward of one or two maps.

    Returns:
        The result, and the mean of the normalised tokens, (N B, C) in fp32.
    """
    batch, height, width, channels = first.shape
    maps = 1 if second is None else 2
    out = torch.empty(
        (maps * batch, channels), dtype=torch.float32, device=first.device
    )
    mean = torch.empty_like(out)
    if batch == 0:
        return out, mean
    sums = sum_maps(first, second, eps)
    _end(out, mean, sums, weight, bias, height * width)
    return out, mean


def _differentiate(
    dmaps: tuple[Tensor, Tensor | None],
    dout: Tensor,
    maps: tuple[Tensor, Tensor | None],
    weight: Tensor,
    eps: float,
) -> None:
    """Write the gradients of maps (B, H W, C)."""
    first, second = maps
    batch, tokens, channels = first.shape
    tile = row_tile(channels)
    programs, steps = split_rows(
        tokens, tile.rows, at_least=16, groups=batch, waves=4
    )
    launch(
        _backward_kernel,
        (dout.shape[0] * programs, 1, 1),
        (*dmaps, dout, weight, *maps),
        (batch, tokens, programs, *first.stride()[:2], steps, float(eps)),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )


def backward(
    dout: Tensor,
    first: Tensor,
    second: Tensor | None,
    mean: Tensor,
    weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward.

    Returns:
        Gradients of the maps (an empty tensor without a second one), and of
        weight and bias in fp32.
    """
    batch, height, width, channels = first.shape
    dweight, dbias = mean.new_empty(channels), mean.new_empty(channels)
    dfirst = empty_gradient(first, first)
    dsecond = empty_gradient(second, first)
    if batch == 0:
        return dfirst, dsecond, dweight.zero_(), dbias.zero_()
    dout, weight = dout.contiguous(), weight.contiguous()
    tile = row_tile(min(channels, _END_COLUMNS))
    launch(
        _parameters_kernel,
        (-(-channels // tile.columns), 1, 1),
        (dweight, dbias, dout, mean),
        (dout.shape[0],),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )
    shape = (batch, height * width, channels)
    first = as_rows(first, shape)
    if second is None:
        _differentiate((dfirst, None), dout, (first, None), weight, eps)
        return dfirst, dsecond, dweight, dbias
    second = as_rows(second, shape)
    if _one_layout(first, second):
        maps = (first, second)
        _differentiate((dfirst, dsecond), dout, maps, weight, eps)
    else:
        halves = dout.split(batch)
        _differentiate((dfirst, None), halves[0], (first, None), weight, eps)
        _differentiate((dsecond, None), halves[1], (second, None), weight, eps)
    return dfirst, dsecond, dweight, dbias
