"""Fusion of an EVSS block: two maps, times their gates, added to a residual.

    y = residual + scale * (a * sigmoid(g(a)) + b * sigmoid(g(b)))
    g(x) = expand(gelu(reduce(mean over H W of layer_norm(x))))

The forward reads both maps twice: for the means that the gates are made of,
and to multiply and add them. The backward reads the maps and dy twice as
well: for the sums of dy * x, of which the gates' gradients are made, and for
the gradients of the maps, part of which goes through the gates.

Shape letters: B batch, H W feature map, T = H W tokens, C channels, E hidden
channels of the gates, P programs of an image. Tensors (2, B, ...) hold the
values of ``a``, then those of ``b``.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    LIMITS,
    dense_like,
    image_rows,
    launch,
    load_channels,
    load_rows,
    normalize,
    once_differentiable,
    pipeline_stages,
    row_tile,
    split_rows,
    store_rows,
)
from .fusion_gates import (
    GateGradients,
    gates_backward,
    gates_fit,
    gates_forward,
    parameters_backward,
    sigmoid_factor,
)

__all__ = ['gated_residual', 'gates_fit', 'residual_add']

# Tiles of the backward: 32 values of each map a thread. A program has this
# many of them, unless the card would stay empty or there are too many sums.
_BACKWARD_ELEMENTS, _BACKWARD_WARPS, _BACKWARD_STEPS = 2048, 2, 4
# Partial sums of an image that a batch of any size may have: the next kernel
# adds up those of one image in turn, and those of all images in parallel.
_FEW_PARTIAL_SUMS = 32


class _Rows(NamedTuple):
    """Feature maps as images of evenly spaced rows with dense channels.

    Args:
        maps: Maps (B, T, C).
        strides: Elements from one image and from one row to the next, map by
            map.
        shape: B, T and C.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    shape: tuple[int, int, int]


# y = residual + scale * (a * sigmoid(logits_a) + b * sigmoid(logits_b))
@triton.jit
def _gated_sum_kernel(
    y_ptr,
    residual_ptr,
    a_ptr,
    b_ptr,
    logits_ptr,
    scale_ptr,
    batch,
    tokens,
    programs,
    residual_image_stride,
    residual_stride,
    a_image_stride,
    a_stride,
    b_image_stride,
    b_stride,
    steps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    program = tl.program_id(0)
    image = (program // programs).to(tl.int64)
    first = (program % programs).to(tl.int64) * steps * BLOCK_M
    factor_a, _ = sigmoid_factor(
        logits_ptr, scale_ptr, image, batch, columns, C
    )
    factor_b, _ = sigmoid_factor(
        logits_ptr, scale_ptr, image + batch, batch, columns, C
    )
    residual_ptr += image * residual_image_stride
    a_ptr += image * a_image_stride
    b_ptr += image * b_image_stride
    y_ptr += image * tokens * C
    for step in range(steps):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        y = load_rows(residual_ptr, rows, residual_stride, columns, mask)
        a = load_rows(a_ptr, rows, a_stride, columns, mask)
        b = load_rows(b_ptr, rows, b_stride, columns, mask)
        update = a * factor_a[None, :]
        update += b * factor_b[None, :]
        store_rows(y_ptr, rows, C, columns, mask, y + update)


# sums[0, image, p] = sum over the tokens of program p of dy * a
# sums[1, image, p] = the same of dy * b
@triton.jit
def _product_sum_kernel(
    sums_ptr,
    dy_ptr,
    a_ptr,
    b_ptr,
    tokens,
    programs,
    dy_image_stride,
    dy_stride,
    a_image_stride,
    a_stride,
    b_image_stride,
    b_stride,
    steps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    program = tl.program_id(0)
    image = (program // programs).to(tl.int64)
    first = (program % programs).to(tl.int64) * steps * BLOCK_M
    dy_ptr += image * dy_image_stride
    a_ptr += image * a_image_stride
    b_ptr += image * b_image_stride
    sum_a = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    sum_b = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for step in range(steps):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        sum_a += dy * load_rows(a_ptr, rows, a_stride, columns, mask)
        sum_b += dy * load_rows(b_ptr, rows, b_stride, columns, mask)
    places = sums_ptr + program.to(tl.int64) * C + columns
    tl.store(places, tl.sum(sum_a, axis=0), mask=inside)
    places += tl.num_programs(0).to(tl.int64) * C
    tl.store(places, tl.sum(sum_b, axis=0), mask=inside)


@triton.jit
def _through_norm(x, dxhat, inside, eps, C: tl.constexpr):
    """``dx = rstd * (dxhat - xhat * mean(dxhat * xhat))`` of each row.

    Here dxhat (BLOCK_C,) has mean 0 and is the same for all rows.
    """
    xhat, rstd = normalize(x, inside, eps, C)
    along = tl.sum(dxhat[None, :] * xhat, axis=1) / C
    return (dxhat[None, :] - xhat * along[:, None]) * rstd[:, None]


# dx = dy * factor + rstd * (dxhat - xhat * mean over C of dxhat * xhat)
# for x = a and x = b
@triton.jit
def _maps_backward_kernel(
    da_ptr,
    db_ptr,
    dy_ptr,
    a_ptr,
    b_ptr,
    factor_ptr,
    dxhat_ptr,
    batch,
    tokens,
    programs,
    dy_image_stride,
    dy_stride,
    a_image_stride,
    a_stride,
    b_image_stride,
    b_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    program = tl.program_id(0)
    image = (program // programs).to(tl.int64)
    first = (program % programs).to(tl.int64) * steps * BLOCK_M
    factor_a = load_channels(factor_ptr + image * C, columns, C)
    dxhat_a = load_channels(dxhat_ptr + image * C, columns, C)
    factor_b = load_channels(factor_ptr + (image + batch) * C, columns, C)
    dxhat_b = load_channels(dxhat_ptr + (image + batch) * C, columns, C)
    dy_ptr += image * dy_image_stride
    a_ptr += image * a_image_stride
    b_ptr += image * b_image_stride
    da_ptr += image * tokens * C
    db_ptr += image * tokens * C
    for step in tl.range(steps, num_stages=NUM_STAGES):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        a = load_rows(a_ptr, rows, a_stride, columns, mask)
        b = load_rows(b_ptr, rows, b_stride, columns, mask)
        da = dy * factor_a[None, :] + _through_norm(a, dxhat_a, inside, eps, C)
        store_rows(da_ptr, rows, C, columns, mask, da)
        db = dy * factor_b[None, :] + _through_norm(b, dxhat_b, inside, eps, C)
        store_rows(db_ptr, rows, C, columns, mask, db)


def _as_images(*maps: Tensor) -> _Rows:
    """Maps (B, H, W, C) as rows; other layouts are copied."""
    batch, height, width, channels = maps[0].shape
    shape = (batch, height * width, channels)
    pairs = [image_rows(x, shape) for x in maps]
    strides = tuple(stride for _, pair in pairs for stride in pair)
    return _Rows(tuple(x for x, _ in pairs), strides, shape)


def _gated_sum(
    residual: Tensor,
    a: Tensor,
    b: Tensor,
    logits: Tensor,
    scale: Tensor | None,
) -> Tensor:
    y = dense_like(a, torch.promote_types(residual.dtype, a.dtype))
    maps, strides, shape = _as_images(residual, a, b)
    batch, tokens, channels = shape
    tile = row_tile(channels)
    programs, steps = split_rows(tokens, tile.rows, 32, groups=batch)
    scale = None if scale is None else scale.contiguous()
    launch(
        _gated_sum_kernel,
        (batch * programs, 1, 1),
        (y, *maps, logits, scale),
        (batch, tokens, programs, *strides, steps),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )
    return y


def _product_sums(rows: _Rows) -> Tensor:
    """Sums of dy * a and dy * b of each program, (2, B, P, C) in fp32."""
    batch, tokens, channels = rows.shape
    tile = row_tile(channels, _BACKWARD_ELEMENTS)
    programs, steps = split_rows(
        tokens,
        tile.rows,
        at_least=_BACKWARD_STEPS * tile.rows,
        groups=batch,
        programs=max(-(-LIMITS.partial_sums // batch), _FEW_PARTIAL_SUMS),
    )
    sums = torch.empty(
        (2, batch, programs, channels),
        dtype=torch.float32,
        device=rows.maps[0].device,
    )
    launch(
        _product_sum_kernel,
        (batch * programs, 1, 1),
        (sums, *rows.maps),
        (tokens, programs, *rows.strides, steps),
        (channels, tile.rows, tile.columns),
        _BACKWARD_WARPS,
    )
    return sums


def _maps_backward(
    rows: _Rows, a: Tensor, b: Tensor, gradients: GateGradients, eps: float
) -> tuple[Tensor, Tensor]:
    da, db = dense_like(a, a.dtype), dense_like(b, b.dtype)
    batch, tokens, channels = rows.shape
    tile = row_tile(channels, _BACKWARD_ELEMENTS)
    stages = pipeline_stages(tile.rows * tile.columns, *rows.maps)
    programs, steps = split_rows(
        tokens, tile.rows, at_least=_BACKWARD_STEPS * tile.rows, groups=batch
    )
    launch(
        _maps_backward_kernel,
        (batch * programs, 1, 1),
        (da, db, *rows.maps, gradients.factor, gradients.dxhat),
        (batch, tokens, programs, *rows.strides, steps, float(eps)),
        (channels, tile.rows, tile.columns, stages),
        _BACKWARD_WARPS,
    )
    return da, db


class _GatedResidual(torch.autograd.Function):
    """One gradient of each map, by itself and through its gate."""

    @staticmethod
    def forward(ctx, residual, a, b, eps, scale, *parameters):
        ctx.eps, ctx.residual_dtype = eps, residual.dtype
        if len(a) == 0:
            ctx.save_for_backward(a, b, *parameters)
            return dense_like(a, torch.promote_types(residual.dtype, a.dtype))
        inner = gates_forward(a, b, eps, parameters, keep=True)
        ctx.save_for_backward(a, b, *parameters, scale, *inner)
        return _gated_sum(residual, a, b, inner[0], scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        for_residual, *for_maps = ctx.needs_input_grad[:3]
        a, b, *saved = ctx.saved_tensors
        parameters, inner = tuple(saved[:6]), saved[6:]
        dresidual = dy.to(ctx.residual_dtype) if for_residual else None
        if not inner:
            empty = (torch.zeros_like(x) for x in (a, b, *parameters))
            da, db, *dparameters = empty
            return dresidual, da, db, None, None, *dparameters
        for_parameters = any(ctx.needs_input_grad[5:])
        dmaps, dparameters = (None, None), (None,) * 6
        if any(for_maps) or for_parameters:
            scale, logits, mean, hidden = inner
            rows = _as_images(dy, a, b)
            sums = _product_sums(rows)
            gradients = gates_backward(
                sums, rows.shape[1], logits, hidden, parameters, scale
            )
        if for_parameters:
            dparameters = parameters_backward(
                gradients, mean, hidden, parameters
            )
        if any(for_maps):
            dmaps = _maps_backward(rows, a, b, gradients, ctx.eps)
        return dresidual, *dmaps, None, None, *dparameters


def gated_residual(
    residual: Tensor,
    a: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    scale: Tensor | None = None,
) -> Tensor:
    """Add two maps, times gates made of themselves, to a residual map.

    The gates are computed in fp32.

    Args:
        residual: Feature map (B, H, W, C), H and W at least 1.
        a: Feature map of this shape.
        b: Feature map of this shape.
        norm_weight: Scale of the norm before the gates, (C,).
        norm_bias: Shift of the norm, (C,).
        eps: Added to the variance.
        reduce_weight: First linear map, (E, C), where :func:`gates_fit`.
        reduce_bias: (E,).
        expand_weight: Second linear map, (C, E).
        expand_bias: (C,).
        scale: Factor of each image, as stochastic depth draws it, (B,). No
            gradient goes to it.

    Returns:
        Feature map in the wider dtype of ``residual`` and ``a``.

    Source: EfficientVMamba (arXiv:2403.09977), section 4.2.
    """
    assert residual.shape == a.shape == b.shape
    parameters = (
        norm_weight, norm_bias, reduce_weight, reduce_bias, expand_weight,
        expand_bias,
    )  # fmt: skip
    if torch.is_grad_enabled():
        return _GatedResidual.apply(residual, a, b, eps, scale, *parameters)
    if len(a) == 0:
        return dense_like(a, torch.promote_types(residual.dtype, a.dtype))
    logits, _, _ = gates_forward(a, b, eps, parameters, keep=False)
    return _gated_sum(residual, a, b, logits, scale)


def residual_add(residual: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
    """Add a map to a residual map, by torch.

    Args:
        residual: Feature map (B, H, W, C).
        x: Feature map of this shape.
        scale: Factor of each image of ``x``, (B,) in its dtype, or None. No
            gradient goes to it.

    Returns:
        Feature map in the wider dtype of both.
    """
    if scale is None:
        return residual + x
    return torch.addcmul(residual, x, scale.detach().view(-1, 1, 1, 1))
