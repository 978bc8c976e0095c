"""Kernel of the layer norm of 2x2 neighbours, read where they lie.

Shape letters: B batch, H W map, C channels, T cells of the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import normalise, store_rows
from .tiles import row_tile, split_rows


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
    down = (columns // C % 2)[None, :]
    right = (columns // C // 2)[None, :]
    channel = (columns % C)[None, :]
    across = (width + 1) // 2
    along = (height + 1) // 2
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        cell = rows[:, None]
        row = cell // across % along * 2 + down
        column = cell % across * 2 + right
        place = (cell // across // along * height + row) * width + column
        mask = (cell < cells) & inside[None, :]
        there = mask & (row < height) & (column < width)
        x = tl.load(x_ptr + place * C + channel, there, other=0.0)
        normed, _ = normalise(x.to(tl.float32), inside, eps, 4 * C)
        out = normed * weight[None, :] + bias[None, :]
        store_rows(out_ptr, rows, 4 * C, columns, mask, out)


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
