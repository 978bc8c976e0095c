"""Kernels of the mean over a map of its normalised tokens.

Each map is read once and no normalised map is written: each program sums its
rows, and one small kernel over all maps ends the sums and does the affine
part, which commutes with the mean. The backward is one kernel a map, and one
over all maps for the parameters.

Shape letters: N maps, B batch, H W map, C channels, P programs of a batch
entry.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import load_rows, normalise, store_rows
from .tiles import as_rows, empty_gradient, row_tile, split_rows

_MOST_PARTIAL_SUMS = 1056
# Few channels a program: what ends the sums has little else to share out.
_END_COLUMNS = 32


@triton.jit
def _sum_kernel(
    sums_ptr,
    x_ptr,
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
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(
            x_ptr + entry * batch_stride, rows, row_stride, columns, mask
        )
        # A row outside is all zero, and stays so.
        normed, _ = normalise(x, inside, eps, C)
        total += normed
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
def _backward_kernel(
    dx_ptr,
    dout_ptr,
    weight_ptr,
    x_ptr,
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
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(
            x_ptr + entry * batch_stride, rows, row_stride, columns, mask
        )
        normed, rstd = normalise(x, inside, eps, C)
        along = tl.sum(centred[None, :] * normed, axis=1) / C
        dx = (centred[None, :] - normed * along[:, None]) * rstd[:, None]
        store_rows(dx_ptr + entry * tokens * C, rows, C, columns, mask, dx)


def _sum(sums: Tensor, x: Tensor, eps: float, steps: int) -> None:
    """Write sums of the normalised tokens of a map, (B, P, C)."""
    batch, height, width, channels = x.shape
    programs = sums.shape[1]
    x = as_rows(x, (batch, height * width, channels))
    tile = row_tile(channels)
    launch(
        _sum_kernel,
        (batch * programs, 1, 1),
        (sums, x),
        (height * width, programs, *x.stride()[:2], steps, float(eps)),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )


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
    maps = [first] if second is None else [first, second]
    out = torch.empty(
        (len(maps) * batch, channels), dtype=torch.float32, device=first.device
    )
    mean = torch.empty_like(out)
    if batch == 0:
        return out, mean
    programs, steps = split_rows(
        height * width,
        row_tile(channels).rows,
        at_least=16,
        groups=batch,
        waves=2,
        programs=-(-_MOST_PARTIAL_SUMS // batch),
    )
    sums = out.new_empty((len(maps), batch, programs, channels))
    for x, part in zip(maps, sums, strict=True):
        _sum(part, x, eps, steps)
    _end(out, mean, sums, weight, bias, height * width)
    return out, mean


def _differentiate_map(
    x: Tensor, dout: Tensor, weight: Tensor, eps: float
) -> Tensor:
    """Gradient of a map, in its dtype."""
    batch, height, width, channels = x.shape
    tokens = height * width
    dx = empty_gradient(x, x)
    x = as_rows(x, (batch, tokens, channels))
    tile = row_tile(channels)
    programs, steps = split_rows(
        tokens, tile.rows, at_least=16, groups=batch, waves=4
    )
    launch(
        _backward_kernel,
        (batch * programs, 1, 1),
        (dx, dout, weight, x),
        (tokens, programs, *x.stride()[:2], steps, float(eps)),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )
    return dx


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
    batch, channels = first.shape[0], first.shape[3]
    dweight, dbias = mean.new_empty(channels), mean.new_empty(channels)
    if batch == 0:
        nothing = empty_gradient(first, first), empty_gradient(second, first)
        return *nothing, dweight.zero_(), dbias.zero_()
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
    dfirst = _differentiate_map(first, dout[:batch], weight, eps)
    if second is None:
        return dfirst, empty_gradient(None, first), dweight, dbias
    dsecond = _differentiate_map(second, dout[batch:], weight, eps)
    return dfirst, dsecond, dweight, dbias
