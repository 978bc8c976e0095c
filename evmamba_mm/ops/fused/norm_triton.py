"""Kernels of the layer norm and of its gated form.

A program holds whole rows in registers, so the statistics cost no memory
traffic; the backward computes them again rather than reading them.

Shape letters: T tokens, C channels, P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .pixels import pixel_rows
from .sums_triton import add_up
from .tiles import (
    Tile,
    as_rows,
    dense_like,
    empty_gradient,
    pipeline_stages,
    row_tile,
    split_rows,
)

_MOST_PARTIAL_SUMS = 1056
# The gradients fill more registers: more programs that are smaller.
_BACKWARD_ELEMENTS = 1024


@triton.jit
def normalise(x, inside, eps, C: tl.constexpr):
    """Rows of mean 0 and variance 1, zero outside, and 1 / deviation."""
    mean = tl.sum(x, axis=1) / C
    centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def differentiate(dout, normed, rstd, weight, C: tl.constexpr):
    """Gradient of the rows that are normalised and scaled."""
    dnormed = dout * weight[None, :]
    along = tl.sum(dnormed * normed, axis=1) / C
    level = tl.sum(dnormed, axis=1) / C
    dx = dnormed - level[:, None] - normed * along[:, None]
    return dx * rstd[:, None]


@triton.jit
def load_rows(x_ptr, rows, stride, columns, mask):
    """Tile in fp32 with zeros outside of the mask."""
    places = x_ptr + rows[:, None] * stride + columns[None, :]
    return tl.load(places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(x_ptr, rows, stride, columns, mask, values):
    """Write a tile in the dtype of its place."""
    places = x_ptr + rows[:, None] * stride + columns[None, :]
    tl.store(places, values.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _forward_kernel(
    out_ptr,
    x_ptr,
    gate_ptr,
    weight_ptr,
    bias_ptr,
    tokens,
    x_stride,
    gate_stride,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        if GATED:
            gate = load_rows(gate_ptr, rows, gate_stride, columns, mask)
        normed, _ = normalise(x, inside, eps, C)
        out = normed * weight[None, :] + bias[None, :]
        if GATED:
            out *= gate * tl.sigmoid(gate)
        store_rows(out_ptr, rows, C, columns, mask, out)


@triton.jit
def _backward_kernel(
    dx_ptr,
    dgate_ptr,
    sums_ptr,
    dout_ptr,
    more_ptr,
    through_ptr,
    x_ptr,
    gate_ptr,
    weight_ptr,
    bias_ptr,
    tokens,
    dout_stride,
    more_stride,
    through_stride,
    x_stride,
    gate_stride,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
    STAGES: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    if GATED:
        bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        dout = load_rows(dout_ptr, rows, dout_stride, columns, mask)
        if more_ptr is not None:
            dout += load_rows(more_ptr, rows, more_stride, columns, mask)
        if GATED:
            gate = load_rows(gate_ptr, rows, gate_stride, columns, mask)
        normed, rstd = normalise(x, inside, eps, C)
        if GATED:
            open_ = tl.sigmoid(gate)
            affine = normed * weight[None, :] + bias[None, :]
            dgate = dout * affine * open_ * (1 + gate * (1 - open_))
            store_rows(dgate_ptr, rows, C, columns, mask, dgate)
            dout *= gate * open_
        # Without an eps a row outside is not zero any more.
        dweight += tl.where(mask, dout * normed, 0.0)
        dbias += dout
        dx = differentiate(dout, normed, rstd, weight, C)
        if through_ptr is not None:
            dx += load_rows(through_ptr, rows, through_stride, columns, mask)
        store_rows(dx_ptr, rows, C, columns, mask, dx)
    places = sums_ptr + tl.program_id(0) * (2 * C) + columns
    tl.store(places, tl.sum(dweight, axis=0), mask=inside)
    tl.store(places + C, tl.sum(dbias, axis=0), mask=inside)


def share_backward(tokens: int, channels: int) -> tuple[Tile, int, int]:
    """Tile of a norm's backward, programs, and steps of a program."""
    tile = row_tile(channels, _BACKWARD_ELEMENTS)
    programs, steps = split_rows(
        tokens,
        tile.rows,
        at_least=16,
        waves=2,
        programs=_MOST_PARTIAL_SUMS,
    )
    return tile, programs, steps


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """Evenly spaced rows with dense channels, and the distance of two."""
    if x.dim() == 4:
        return pixel_rows(x)
    x = as_rows(x, (-1, x.shape[-1]))
    return x, x.stride(0)


def forward(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the forward; see :func:`.norm.layer_norm_gate`."""
    channels = x.shape[-1]
    tokens = x.numel() // channels
    out = dense_like(x, dtype)
    if tokens == 0:
        return out
    x, x_stride = _rows(x)
    gated = gate is not None
    gate, gate_stride = _rows(gate) if gated else (x, x_stride)
    tile = row_tile(channels)
    programs, steps = split_rows(tokens, tile.rows, at_least=8)
    launch(
        _forward_kernel,
        (programs, 1, 1),
        (out, x, gate, weight.contiguous(), bias.contiguous()),
        (tokens, x_stride, gate_stride, steps, float(eps)),
        (channels, tile.rows, tile.columns, gated),
        tile.warps,
    )
    return out


def backward(
    dout: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    more: Tensor | None = None,
    through: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward.

    Args:
        dout: Gradient of the result.
        x: What was normalised.
        gate: Its gate, or None.
        weight: Scale of each channel.
        bias: Shift of each channel.
        eps: Added to the variance.
        more: A second gradient of the result, to be added.
        through: Gradient that x has besides, to be added to its own.

    Returns:
        Gradients of x, of the gate (an empty tensor without one), and of
        weight and bias, (2, C) in fp32.
    """
    channels = x.shape[-1]
    gated = gate is not None
    dx, dgate = empty_gradient(x, x), empty_gradient(gate, x)
    dout, more, through, x, gate = maps = [
        None if map_ is None else as_rows(map_, (-1, channels))
        for map_ in (dout, more, through, x, gate)
    ]
    tile, programs, steps = share_backward(x.shape[0], channels)
    sums = torch.empty(
        (programs, 2, channels), dtype=torch.float32, device=x.device
    )
    if programs > 0:
        strides = [0 if map_ is None else map_.stride(0) for map_ in maps]
        weight, bias = weight.contiguous(), bias.contiguous()
        stages = pipeline_stages(tile.rows * tile.columns, *maps)
        launch(
            _backward_kernel,
            (programs, 1, 1),
            (dx, dgate, sums, *maps, weight, bias),
            (x.shape[0], *strides, steps, float(eps)),
            (channels, tile.rows, tile.columns, gated, stages),
            tile.warps,
        )
    return dx, dgate, add_up(sums)
