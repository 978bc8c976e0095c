"""Kernels of the layer norm of 2x2 neighbours, read where they lie.

Shape letters: B batch, H W map, C channels, T cells of the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import (
    differentiate,
    load_rows,
    normalise,
    share_backward,
    store_rows,
)
from .sums_triton import add_up
from .tiles import (
    as_rows,
    dense_like,
    pipeline_stages,
    row_tile,
    split_rows,
)


@triton.jit
def _locate(rows, columns, height, width, C: tl.constexpr):
    """Elements of the map that cells of the result come from."""
    down = (columns // C % 2)[None, :]
    right = (columns // C // 2)[None, :]
    across = (width + 1) // 2
    along = (height + 1) // 2
    cell = rows[:, None]
    row = cell // across % along * 2 + down
    column = cell % across * 2 + right
    place = (cell // across // along * height + row) * width + column
    there = (row < height) & (column < width)
    return place * C + (columns % C)[None, :], there


@triton.jit
def _merge_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    cells,
    height,
    width,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < 4 * C
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < cells)[:, None] & inside[None, :]
        place, there = _locate(rows, columns, height, width, C)
        x = tl.load(x_ptr + place, mask & there, other=0.0)
        normed, _ = normalise(x.to(tl.float32), inside, eps, 4 * C)
        out = normed * weight[None, :] + bias[None, :]
        store_rows(out_ptr, rows, 4 * C, columns, mask, out)


@triton.jit
def _backward_kernel(
    dx_ptr,
    sums_ptr,
    dout_ptr,
    x_ptr,
    weight_ptr,
    cells,
    dout_stride,
    height,
    width,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < 4 * C
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < cells)[:, None] & inside[None, :]
        place, there = _locate(rows, columns, height, width, C)
        there &= mask
        x = tl.load(x_ptr + place, there, other=0.0).to(tl.float32)
        dout = load_rows(dout_ptr, rows, dout_stride, columns, mask)
        normed, rstd = normalise(x, inside, eps, 4 * C)
        # Without an eps a row outside is not zero any more.
        dweight += tl.where(mask, dout * normed, 0.0)
        dbias += dout
        dx = differentiate(dout, normed, rstd, weight, 4 * C)
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), there)
    places = sums_ptr + tl.program_id(0) * (8 * C) + columns
    tl.store(places, tl.sum(dweight, axis=0), mask=inside)
    tl.store(places + 4 * C, tl.sum(dbias, axis=0), mask=inside)


def merge_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Launch the kernel; see :func:`.merge_norm.merge_layer_norm`."""
    batch, height, width, channels = x.shape
    shape = (batch, (height + 1) // 2, (width + 1) // 2, 4 * channels)
    out = torch.empty(shape, dtype=dtype, device=x.device)
    if batch == 0:
        return out
    cells = batch * shape[1] * shape[2]
    tile = row_tile(shape[3])
    programs, steps = split_rows(cells, tile.rows, at_least=8)
    launch(
        _merge_kernel,
        (programs, 1, 1),
        (out, x.contiguous(), weight.contiguous(), bias.contiguous()),
        (cells, height, width, steps, float(eps)),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )
    return out


def merge_backward(
    dout: Tensor, x: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Launch the backward.

    Returns:
        Gradients of the map, and of weight and bias, (2, 4C) in fp32.
    """
    batch, height, width, channels = x.shape
    wide = 4 * channels
    dx = dense_like(x, x.dtype)
    dout = as_rows(dout, (-1, wide))
    tile, programs, steps = share_backward(len(dout), wide)
    sums = torch.empty(
        (programs, 2, wide), dtype=torch.float32, device=x.device
    )
    if batch > 0:
        stages = pipeline_stages(tile.rows * tile.columns, dout, x)
        launch(
            _backward_kernel,
            (programs, 1, 1),
            (dx, sums, dout, x.contiguous(), weight.contiguous()),
            (len(dout), dout.stride(0), height, width, steps, float(eps)),
            (channels, tile.rows, tile.columns, stages),
            tile.warps,
        )
    return dx, add_up(sums)
