"""Kernels of the gated and scaled sum of maps.

Shape letters: B batch, H W map, C channels, P programs of a batch entry.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import load_rows, store_rows
from .sums_triton import add_up
from .tiles import (
    as_rows,
    dense_like,
    empty_gradient,
    image_rows,
    row_tile,
    split_rows,
)

_MOST_PARTIAL_SUMS = 1056


@triton.jit
def _place(programs, program_rows):
    """Batch entry of this program, and its first row there."""
    program = tl.program_id(0)
    entry = (program // programs).to(tl.int64)
    return entry, (program % programs).to(tl.int64) * program_rows


@triton.jit
def _scale(scale_ptr, entry):
    scale = 1.0
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + entry).to(tl.float32)
    return scale


@triton.jit
def _opening(gate_ptr, entry, columns, inside, C: tl.constexpr):
    """How far the gate of each channel is open; without a gate, wholly."""
    opening = tl.where(inside, 1.0, 0.0)
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + entry * C + columns, inside, other=0.0)
        opening = tl.sigmoid(gate.to(tl.float32))
    return opening


@triton.jit
def _forward_kernel(
    out_ptr,
    residual_ptr,
    a_ptr,
    gate_a_ptr,
    b_ptr,
    gate_b_ptr,
    scale_ptr,
    tokens,
    programs,
    residual_batch_stride,
    residual_stride,
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
    entry, first = _place(programs, steps * ROWS)
    scale = _scale(scale_ptr, entry)
    factor_a = scale * _opening(gate_a_ptr, entry, columns, inside, C)
    factor_b = scale * _opening(gate_b_ptr, entry, columns, inside, C)
    residual_ptr += entry * residual_batch_stride
    a_ptr += entry * a_batch_stride
    if b_ptr is not None:
        b_ptr += entry * b_batch_stride
    out_ptr += entry * tokens * C
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        out = load_rows(residual_ptr, rows, residual_stride, columns, mask)
        a = load_rows(a_ptr, rows, a_stride, columns, mask)
        update = a * factor_a[None, :]
        if b_ptr is not None:
            b = load_rows(b_ptr, rows, b_stride, columns, mask)
            update += b * factor_b[None, :]
        store_rows(out_ptr, rows, C, columns, mask, out + update)


@triton.jit
def _backward_kernel(
    da_ptr,
    db_ptr,
    sums_ptr,
    dout_ptr,
    a_ptr,
    gate_a_ptr,
    b_ptr,
    gate_b_ptr,
    scale_ptr,
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
    entry, first = _place(programs, steps * ROWS)
    scale = _scale(scale_ptr, entry)
    open_a = _opening(gate_a_ptr, entry, columns, inside, C)
    open_b = _opening(gate_b_ptr, entry, columns, inside, C)
    sum_a = tl.zeros((ROWS, COLUMNS), tl.float32)
    sum_b = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        dense = rows + entry * tokens
        place = dout_ptr + entry * dout_batch_stride
        dout = scale * load_rows(place, rows, dout_stride, columns, mask)
        if gate_a_ptr is not None:
            place = a_ptr + entry * a_batch_stride
            sum_a += dout * load_rows(place, rows, a_stride, columns, mask)
        if gate_b_ptr is not None:
            place = b_ptr + entry * b_batch_stride
            sum_b += dout * load_rows(place, rows, b_stride, columns, mask)
        store_rows(da_ptr, dense, C, columns, mask, dout * open_a[None, :])
        if b_ptr is not None:
            store_rows(db_ptr, dense, C, columns, mask, dout * open_b[None, :])
    place = sums_ptr + tl.program_id(0).to(tl.int64) * C + columns
    if gate_a_ptr is not None:
        dgate = tl.sum(sum_a, axis=0) * open_a * (1 - open_a)
        tl.store(place, dgate, mask=inside)
        place += tl.num_programs(0).to(tl.int64) * C
    if gate_b_ptr is not None:
        dgate = tl.sum(sum_b, axis=0) * open_b * (1 - open_b)
        tl.store(place, dgate, mask=inside)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def forward(
    residual: Tensor,
    a: Tensor,
    gate_a: Tensor | None,
    b: Tensor | None,
    gate_b: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """Launch the forward; see :func:`.scale_add.scale_add`."""
    batch, height, width, channels = a.shape
    dtype = torch.promote_types(residual.dtype, a.dtype)
    out = dense_like(a, dtype)
    if out.numel() == 0:
        return out
    shape = (batch, height * width, channels)
    residual, residual_strides = image_rows(residual, shape)
    a, a_strides = image_rows(a, shape)
    b, b_strides = (b, a_strides) if b is None else image_rows(b, shape)
    tile = row_tile(channels)
    programs, steps = split_rows(shape[1], tile.rows, 32, groups=batch)
    factors = _dense(gate_a), b, _dense(gate_b), _dense(scale)
    strides = *residual_strides, *a_strides, *b_strides
    launch(
        _forward_kernel,
        (batch * programs, 1, 1),
        (out, residual, a, *factors),
        (shape[1], programs, *strides, steps),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )
    return out


def backward(
    dout: Tensor,
    a: Tensor,
    gate_a: Tensor | None,
    b: Tensor | None,
    gate_b: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward.

    Returns:
        Gradients of a, of b (an empty tensor without one), and of the gates
        that there are, (gates, B, C) in fp32.
    """
    batch, height, width, channels = a.shape
    shape = (batch, height * width, channels)
    da = empty_gradient(a, a)
    db = empty_gradient(b, a)
    tile = row_tile(channels)
    programs, steps = split_rows(
        shape[1],
        tile.rows,
        at_least=32,
        groups=batch,
        waves=2,
        programs=-(-_MOST_PARTIAL_SUMS // max(batch, 1)),
    )
    gates = (gate_a is not None) + (gate_b is not None)
    sums = torch.empty(
        (gates, batch, programs, channels),
        dtype=torch.float32,
        device=a.device,
    )
    if da.numel() > 0:
        dout, a = as_rows(dout, shape), as_rows(a, shape)
        b = None if b is None else as_rows(b, shape)
        factors = _dense(gate_a), b, _dense(gate_b), _dense(scale)
        strides = (
            *dout.stride()[:2],
            *a.stride()[:2],
            *(a if b is None else b).stride()[:2],
        )
        launch(
            _backward_kernel,
            (batch * programs, 1, 1),
            (da, db, sums, dout, a, *factors),
            (shape[1], programs, *strides, steps),
            (channels, tile.rows, tile.columns),
            tile.warps,
        )
    return da, db, add_up(sums, 2)
