"""BatchNorm of a channels-last feature map, and the activation after it.

The statistics take two steps: each program computes those of its rows, and a
small kernel merges them in a fixed order.

Shape letters: B batch, H W feature map, M tokens, C channels, P parts.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    activate,
    activation_grad,
    as_rows,
    dense_like,
    launch,
    load_channels,
    load_rows,
    once_differentiable,
    pipeline_stages,
    split_rows,
    store_rows,
)
from .sums import WARPS, place, sum_parts, sweep

_MERGE_WARPS = 4
# Tile of the parts that are merged, and the most rows of it.
_PART_TILE = 2048
_MAX_PARTS = 256
# Rows that a program should have which writes as much as it reads.
_MIN_ROWS = 64


class ChannelNorm(NamedTuple):
    """``(x - mean) rsqrt(var + eps) weight + bias`` by given statistics.

    Args:
        weight: (C,).
        bias: (C,).
        mean: (C,).
        var: Variance, (C,).
        eps: Added to the variance.
        own: Whether the statistics are those of x, so that its gradient goes
            through them, too; else they are constants.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    own: bool = False


def norm_arguments(
    norm: ChannelNorm | None,
) -> tuple[tuple[Tensor | None, ...], float]:
    """Pointers and the number of a norm, as kernels take them."""
    if norm is None:
        return (None,) * 4, 0.0
    return tuple(x.contiguous() for x in norm[:4]), float(norm.eps)


@functools.lru_cache(maxsize=1024)
def _part_tile(parts: int) -> tuple[int, int]:
    """Rows and columns that a program merges at a time."""
    rows = min(max(32, triton.next_power_of_2(parts)), _MAX_PARTS)
    return rows, _PART_TILE // rows


@triton.jit
def _row_count(program, programs, tokens, BLOCK_M: tl.constexpr):
    """Rows of a program that takes every ``programs``-th tile."""
    tiles = tl.cdiv(tokens, BLOCK_M)
    lacking = tiles * BLOCK_M - tokens
    count = tl.cdiv(tiles - program, programs) * BLOCK_M
    count -= tl.where((tiles - 1) % programs == program, lacking, 0)
    return count.to(tl.float32)


@triton.jit
def _not_negative(x):
    # A maximum would hide a NaN.
    return tl.where(x < 0.0, 0.0, x)


# Of the n rows of a program, with an origin o: s = sum(x - o),
# mean = o + s / n, M2 = sum((x - o)^2) - s^2 / n.
@triton.jit
def _statistics_kernel(
    parts_ptr,
    x_ptr,
    tokens,
    x_stride,
    steps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean and sum of squares around it of the rows of each program."""
    program, programs, columns = place(C, BLOCK_C)
    inside = columns < C
    # The distance to one of the values keeps the digits of the variance
    # however far the mean is from zero.
    start = program.to(tl.int64)
    row = x_ptr + start * BLOCK_M * x_stride
    origin = load_channels(row, columns, C)
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        rows = (start + step * programs) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        moved = tl.where(mask, x - origin[None, :], 0.0)
        sums += moved
        squares += moved * moved
    total = tl.sum(sums, axis=0)
    mean = total / _row_count(program, programs, tokens, BLOCK_M)
    places = parts_ptr + program * (2 * C) + columns
    tl.store(places, origin + mean, mask=inside)
    around = tl.sum(squares, axis=0) - total * mean
    tl.store(places + C, _not_negative(around), mask=inside)


# running = (1 - momentum) * running + momentum * batch
@triton.jit
def _update_running(places, values, momentum, inside):
    """Move running statistics towards those of a batch."""
    old = tl.load(places, inside, other=0.0).to(tl.float32)
    new = (1.0 - momentum) * old + momentum * values
    tl.store(places, new.to(places.dtype.element_ty), mask=inside)


# Of parts p of n_p rows (Chan's formula), with an origin o:
# mean = o + d, d = sum(n_p (mean_p - o)) / M,
# M2 = sum(M2_p + n_p (mean_p - o)^2) - M d^2, var = M2 / M.
@triton.jit
def _merge_kernel(
    mean_ptr,
    var_ptr,
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    parts_ptr,
    tokens,
    parts,
    momentum,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and variance from those of the parts; update the running ones."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    origin = load_channels(parts_ptr, columns, C)
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(0, parts, BLOCK_P):
        part = first + tl.arange(0, BLOCK_P)
        mask = (part < parts)[:, None] & inside[None, :]
        mean = load_rows(parts_ptr, part, 2 * C, columns, mask)
        around = load_rows(parts_ptr + C, part, 2 * C, columns, mask)
        moved = tl.where(mask, mean - origin[None, :], 0.0)
        weighted = moved * _row_count(part, parts, tokens, BLOCK_M)[:, None]
        sums += weighted
        squares += around + weighted * moved
    total = tl.sum(sums, axis=0)
    distance = total / tokens
    around = _not_negative(tl.sum(squares, axis=0) - total * distance)
    mean = origin + distance
    tl.store(mean_ptr + columns, mean, mask=inside)
    tl.store(var_ptr + columns, around / tokens, mask=inside)
    if running_mean_ptr is not None:
        unbiased = around / (tokens - 1)
        _update_running(running_mean_ptr + columns, mean, momentum, inside)
        _update_running(running_var_ptr + columns, unbiased, momentum, inside)
    if batches_ptr is not None:
        # Triton 3.0 does not heed the mask of a single number.
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)


# rstd = 1 / sqrt(var + eps), scale = rstd * weight
@triton.jit
def load_norm(
    weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, columns, C: tl.constexpr
):
    """Mean, rstd, scale and bias of each channel in fp32, (1, BLOCK_C)."""
    mean = load_channels(mean_ptr, columns, C)
    var = tl.load(var_ptr + columns, columns < C, other=1.0).to(tl.float32)
    weight = load_channels(weight_ptr, columns, C)
    bias = load_channels(bias_ptr, columns, C)
    rstd = tl.rsqrt(var + eps)
    scale = rstd * weight
    return mean[None, :], rstd[None, :], scale[None, :], bias[None, :]


# z = (x - mean) * scale + bias, y = activation(z) + residual
@triton.jit
def _forward_kernel(
    y_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    tokens,
    x_stride,
    residual_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    program, programs, columns = place(C, BLOCK_C)
    inside = columns < C
    mean, _, scale, bias = load_norm(
        weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, columns, C
    )
    # From the end, which the pass before has left in the cache.
    first = (programs - 1 - program).to(tl.int64) * steps * BLOCK_M
    for step in range(steps):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        y = activate((x - mean) * scale + bias, ACTIVATION)
        if residual_ptr is not None:
            y += load_rows(residual_ptr, rows, residual_stride, columns, mask)
        store_rows(y_ptr, rows, C, columns, mask, y)


# dz = dy * activation'(z)
@triton.jit
def _preactivation_grad(dy, z, ACTIVATION: tl.constexpr):
    if ACTIVATION == 'relu':
        # As torch, which lets the gradient of a NaN through.
        dy = tl.where(z <= 0.0, 0.0, dy)
    elif ACTIVATION == 'gelu':
        dy *= activation_grad(z, ACTIVATION)
    return dy


# dweight = sum(dz * xhat), dbias = sum(dz), xhat = (x - mean) * rstd.
# Of fixed statistics, dx = dz * scale.
@triton.jit
def _parameters_kernel(
    parts_ptr,
    dx_ptr,
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    tokens,
    dy_stride,
    x_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Parts of the gradients of weight and bias.

    Also the gradient of x by fixed statistics, if given a place.
    """
    program, programs, columns = place(C, BLOCK_C)
    inside = columns < C
    mean, rstd, scale, bias = load_norm(
        weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, columns, C
    )
    dweight = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    start = program.to(tl.int64)
    for step in tl.range(steps, num_stages=STAGES):
        rows = (start + step * programs) * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        centred = x - mean
        dz = _preactivation_grad(dy, centred * scale + bias, ACTIVATION)
        dweight += dz * centred
        dbias += dz
        if dx_ptr is not None:
            store_rows(dx_ptr, rows, C, columns, mask, dz * scale)
    places = parts_ptr + program * (2 * C) + columns
    dweight = tl.sum(dweight * rstd, axis=0)
    tl.store(places, dweight, mask=inside)
    tl.store(places + C, tl.sum(dbias, axis=0), mask=inside)


# dx = scale * (dz - mean(dz) - xhat * mean(dz * xhat)), whose means are
# dbias / M and dweight / M.
@triton.jit
def _input_kernel(
    dx_ptr,
    dy_ptr,
    x_ptr,
    sums_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    tokens,
    dy_stride,
    x_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradient of x where the statistics are its own."""
    program, programs, columns = place(C, BLOCK_C)
    inside = columns < C
    mean, rstd, scale, bias = load_norm(
        weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, columns, C
    )
    along = load_channels(sums_ptr, columns, C) / tokens
    along = rstd * along[None, :]
    dz_mean = load_channels(sums_ptr + C, columns, C) / tokens
    # From the end, which the pass before has left in the cache.
    first = (programs - 1 - program).to(tl.int64) * steps * BLOCK_M
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        centred = x - mean
        dz = _preactivation_grad(dy, centred * scale + bias, ACTIVATION)
        dx = (dz - dz_mean[None, :] - centred * along) * scale
        store_rows(dx_ptr, rows, C, columns, mask, dx)


def _batch_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    batches: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Launch the statistics; the running ones and the count follow them.

    Returns:
        Mean and biased variance of each channel, (C,) each in fp32.
    """
    channels = x.shape[-1]
    mean, var = (
        torch.empty(channels, dtype=torch.float32, device=x.device)
        for _ in range(2)
    )
    x = as_rows(x, (-1, channels))
    tokens = x.shape[0]
    if tokens == 0:
        if batches is not None:
            batches.add_(1)
        return mean.zero_(), var.zero_()
    for written in (running_mean, running_var, batches):
        # Autograd does not see the kernel write.
        if written is not None:
            torch.autograd.graph.increment_version(written)
    running = [
        None if old is None else old.contiguous()
        for old in (running_mean, running_var)
    ]
    plan = sweep(tokens, channels, WARPS)
    stages = pipeline_stages(plan.rows * plan.columns, x)
    tile = _part_tile(plan.programs)
    parts = x.new_empty((plan.programs, 2, channels), dtype=torch.float32)
    launch(
        _statistics_kernel,
        (plan.programs * plan.chunks, 1, 1),
        (parts, x),
        (tokens, x.stride(0), plan.steps),
        (channels, plan.rows, plan.columns, stages),
        WARPS,
    )
    launch(
        _merge_kernel,
        (-(-channels // tile[1]), 1, 1),
        (mean, var, *running, batches, parts),
        (tokens, plan.programs, float(momentum)),
        (channels, plan.rows, *tile),
        _MERGE_WARPS,
    )
    for old, new in zip((running_mean, running_var), running, strict=True):
        if new is not old:
            old.copy_(new)
    return mean, var


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    activation: str,
    dtype: torch.dtype,
    residual: Tensor | None = None,
) -> Tensor:
    """Launch the norm by given statistics, fixed or the map's own."""
    channels = x.shape[-1]
    y = dense_like(x, dtype)
    if y.numel() == 0:
        return y
    x = as_rows(x, (-1, channels))
    if residual is not None:
        residual = as_rows(residual, (-1, channels))
    residual_stride = 0 if residual is None else residual.stride(0)
    plan = sweep(x.shape[0], channels, WARPS)
    programs, steps = split_rows(
        x.shape[0], plan.rows, _MIN_ROWS, groups=plan.chunks
    )
    vectors = [vector.contiguous() for vector in (weight, bias, mean, var)]
    launch(
        _forward_kernel,
        (programs * plan.chunks, 1, 1),
        (y, x, residual, *vectors),
        (x.shape[0], x.stride(0), residual_stride, steps, float(eps)),
        (channels, plan.rows, plan.columns, activation),
        WARPS,
    )
    return y


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    own: bool,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward.

    Returns:
        Gradients of x, weight and bias, each in its tensor's dtype.
    """
    channels = x.shape[-1]
    dx = dense_like(x, x.dtype)
    if dx.numel() == 0:
        return dx, torch.zeros_like(weight), torch.zeros_like(bias)
    dy, x = (as_rows(map_, (-1, channels)) for map_ in (dy, x))
    tokens = x.shape[0]
    plan = sweep(tokens, channels, WARPS)
    parts = x.new_empty((plan.programs, 2, channels), dtype=torch.float32)
    vectors = [vector.contiguous() for vector in (weight, bias, mean, var)]
    layout = (tokens, dy.stride(0), x.stride(0))
    stages = pipeline_stages(plan.rows * plan.columns, dy, x)
    tile = (channels, plan.rows, plan.columns, activation, stages)
    launch(
        _parameters_kernel,
        (plan.programs * plan.chunks, 1, 1),
        (parts, None if own else dx, dy, x, *vectors),
        (*layout, plan.steps, float(eps)),
        tile,
        WARPS,
    )
    sums = sum_parts(parts)
    if own:
        programs, steps = split_rows(
            tokens, plan.rows, _MIN_ROWS, groups=plan.chunks
        )
        launch(
            _input_kernel,
            (programs * plan.chunks, 1, 1),
            (dx, dy, x, sums, *vectors),
            (*layout, steps, float(eps)),
            tile,
            WARPS,
        )
    dweight, dbias = sums
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype)


def norm_relu_backward(
    du: Tensor, x: Tensor, norm: ChannelNorm | None
) -> tuple[Tensor | None, ...]:
    """Gradients of x and of the norm's vectors, from that of ``relu(norm)``.

    Args:
        du: Gradient of the ReLU's result.
        x: Feature map (B, H, W, C).
        norm: Its norm, None where there was neither it nor the ReLU.
    """
    if norm is None:
        return (du,)
    gradients = batch_norm_backward(
        du, x, *norm[:4], norm.own, norm.eps, 'relu'
    )
    return *gradients, None, None


class _BatchNormAct(torch.autograd.Function):
    """Norm by given statistics.

    Its gradient of x includes the way through the statistics if they are the
    map's own.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, own, eps, activation, dtype):
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.options = own, eps, activation
        return _forward(x, weight, bias, mean, var, eps, activation, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gradients = batch_norm_backward(dy, *ctx.saved_tensors, *ctx.options)
        return *gradients, *(None,) * 6


def statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    num_batches_tracked: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel that a BatchNorm normalises by.

    Args:
        x: Feature map of shape (B, H, W, C).
        running_mean: As of :func:`batch_norm_act`.
        running_var: As of :func:`batch_norm_act`.
        training: As of :func:`batch_norm_act`.
        momentum: As of :func:`batch_norm_act`.
        num_batches_tracked: As of :func:`batch_norm_act`.

    Returns:
        Those of the batch in training, else the running ones, (C,) each.

    Raises:
        ValueError: If training meets one value per channel.
    """
    vectors = running_mean, running_var
    assert all(v is None or v.shape == x.shape[-1:] for v in vectors)
    if not training:
        return running_mean, running_var
    if x.shape[:-1].numel() == 1:
        raise ValueError(
            'Expected more than 1 value per channel when training, got '
            f'input of shape {tuple(x.shape)}'
        )
    return _batch_statistics(
        x.detach(), running_mean, running_var, momentum, num_batches_tracked
    )


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    dtype: torch.dtype,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Normalise each channel over batch, height and width, then activate.

    The backward needs only ``x`` and the statistics.

    Args:
        x: Feature map of shape (B, H, W, C), channels innermost in memory;
            another layout is copied.
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        running_mean: Mean to use in evaluation, (C,). Training moves it
            towards the mean of the batch, in place; None keeps none.
        running_var: Variance likewise, towards the unbiased one.
        training: Whether to use the statistics of the batch. Those of an
            empty one change nothing.
        momentum: Share of the batch in the new running statistics.
        eps: Added to the variance.
        activation: 'none', 'relu' or 'gelu' (the exact one).
        dtype: Dtype of the result.
        num_batches_tracked: Number of batches seen, an integer of no
            dimension, to which training adds 1 in place; None counts none.

    Returns:
        Feature map of shape (B, H, W, C).

    Raises:
        ValueError: If training meets one value per channel.

    Source: Batch Normalization (arXiv:1502.03167).
    """
    assert weight.shape == bias.shape == x.shape[-1:]
    mean, var = statistics(
        x, running_mean, running_var, training, momentum, num_batches_tracked
    )
    if not torch.is_grad_enabled():
        return _forward(x, weight, bias, mean, var, eps, activation, dtype)
    return _BatchNormAct.apply(
        x, weight, bias, mean, var, training, eps, activation, dtype
    )


def batch_norm_add_inference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    residual: Tensor,
) -> Tensor:
    """Normalise each channel by fixed statistics and add a residual map.

    Args:
        x: Feature map of shape (B, H, W, C).
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        mean: Mean of each channel, (C,).
        var: Variance of each channel, (C,).
        eps: Added to the variance.
        residual: Feature map of the shape of ``x``.

    Returns:
        Feature map of shape (B, H, W, C) in the wider dtype of the two maps,
        without a gradient.
    """
    assert residual.shape == x.shape
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return _forward(x, weight, bias, mean, var, eps, 'none', dtype, residual)
