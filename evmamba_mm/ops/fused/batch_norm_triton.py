"""Kernels of the batch norm of a channels-last map, and of its activation.

Shape letters: T tokens, C channels, P parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations_triton import activate, slope
from .batch_statistics_triton import WARPS, place, sweep
from .launch import launch
from .norm_triton import load_rows, store_rows
from .sums_triton import add_up
from .tiles import (
    as_rows,
    dense_like,
    empty_gradient,
    pipeline_stages,
    split_rows,
)


@triton.jit
def _before_activation(dy, z, ACTIVATION: tl.constexpr):
    """Gradient of what is activated, from that of the result."""
    if ACTIVATION == 'relu':
        dy = tl.where(z > 0.0, dy, 0.0)
    elif ACTIVATION == 'gelu':
        dy *= slope(z, ACTIVATION)
    return dy


@triton.jit
def _affine(
    weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, columns, inside
):
    """Mean, 1 / deviation, scale and bias of each channel in fp32."""
    mean = tl.load(mean_ptr + columns, inside, other=0.0).to(tl.float32)
    variance = tl.load(variance_ptr + columns, inside, other=1.0)
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(variance.to(tl.float32) + eps)
    scale = rstd * weight
    return mean[None, :], rstd[None, :], scale[None, :], bias[None, :]


@triton.jit
def _forward_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    tokens,
    x_stride,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    slot, slots, columns = place(C, COLUMNS)
    inside = columns < C
    mean, _, scale, bias = _affine(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, columns, inside
    )
    # From the end, which the pass before has left in the cache.
    first = (slots - 1 - slot).to(tl.int64) * steps * ROWS
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        z = (x - mean) * scale + bias
        y = activate(z, ACTIVATION)
        store_rows(y_ptr, rows, C, columns, mask, y)


@triton.jit
def _parameters_kernel(
    parts_ptr,
    dx_ptr,
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    tokens,
    dy_stride,
    x_stride,
    turns,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Parts of the gradients of weight and bias.

    Also the gradient of x, if given a place: that of fixed statistics.
    """
    slot, slots, columns = place(C, COLUMNS)
    inside = columns < C
    mean, rstd, scale, bias = _affine(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, columns, inside
    )
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = slot.to(tl.int64)
    for turn in tl.range(turns, num_stages=STAGES):
        rows = (start + turn * slots) * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        centred = x - mean
        z = centred * scale + bias
        dz = _before_activation(dy, z, ACTIVATION)
        dweight += dz * centred
        dbias += dz
        if dx_ptr is not None:
            store_rows(dx_ptr, rows, C, columns, mask, dz * scale)
    places = parts_ptr + slot * (2 * C) + columns
    dweight = tl.sum(dweight * rstd, axis=0)
    tl.store(places, dweight, mask=inside)
    tl.store(places + C, tl.sum(dbias, axis=0), mask=inside)


@triton.jit
def _input_kernel(
    dx_ptr,
    dy_ptr,
    x_ptr,
    sums_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    tokens,
    dy_stride,
    x_stride,
    steps,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradient of x where the statistics are its own."""
    slot, slots, columns = place(C, COLUMNS)
    inside = columns < C
    mean, rstd, scale, bias = _affine(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, eps, columns, inside
    )
    along = tl.load(sums_ptr + columns, inside, other=0.0) / tokens
    along = rstd * along[None, :]
    level = tl.load(sums_ptr + C + columns, inside, other=0.0) / tokens
    # From the end, which the pass before has left in the cache.
    first = (slots - 1 - slot).to(tl.int64) * steps * ROWS
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        centred = x - mean
        z = centred * scale + bias
        dz = _before_activation(dy, z, ACTIVATION)
        dx = (dz - level[None, :] - centred * along) * scale
        store_rows(dx_ptr, rows, C, columns, mask, dx)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the forward; see :func:`.batch_norm.batch_norm_act`."""
    channels = x.shape[-1]
    y = dense_like(x, dtype)
    if y.numel() == 0:
        return y
    x = as_rows(x, (-1, channels))
    plan = sweep(x.shape[0], channels, WARPS)
    slots, steps = split_rows(x.shape[0], plan.rows, 64, groups=plan.chunks)
    weight, bias = weight.contiguous(), bias.contiguous()
    launch(
        _forward_kernel,
        (slots * plan.chunks, 1, 1),
        (y, x, weight, bias, mean.contiguous(), variance.contiguous()),
        (x.shape[0], x.stride(0), steps, float(eps)),
        (channels, plan.rows, plan.columns, activation),
        WARPS,
    )
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    own: bool,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Launch the backward.

    Returns:
        Gradient of x, and those of weight and bias, (2, C) in fp32.
    """
    channels = x.shape[-1]
    dx = empty_gradient(x, x)
    if dx.numel() == 0:
        return dx, x.new_zeros((2, channels), dtype=torch.float32)
    dy, x = (as_rows(map_, (-1, channels)) for map_ in (dy, x))
    tokens = x.shape[0]
    plan = sweep(tokens, channels, WARPS)
    parts = x.new_empty((plan.slots, 2, channels), dtype=torch.float32)
    parameters = [
        parameter.contiguous() for parameter in (weight, bias, mean, variance)
    ]
    layout = (tokens, dy.stride(0), x.stride(0))
    stages = pipeline_stages(plan.rows * plan.columns, dy, x)
    tile = (channels, plan.rows, plan.columns, activation, stages)
    launch(
        _parameters_kernel,
        (plan.slots * plan.chunks, 1, 1),
        (parts, None if own else dx, dy, x, *parameters),
        (*layout, plan.turns, float(eps)),
        tile,
        WARPS,
    )
    sums = add_up(parts)
    if own:
        slots, steps = split_rows(tokens, plan.rows, 64, groups=plan.chunks)
        launch(
            _input_kernel,
            (slots * plan.chunks, 1, 1),
            (dx, dy, x, sums, *parameters),
            (*layout, steps, float(eps)),
            tile,
            WARPS,
        )
    return dx, sums
