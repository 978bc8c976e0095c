"""Patch embedding: the linear map of an image's patches and its layer norm.

Shape letters: B batch, I channels of the image, H W image, P side of a patch,
C channels, K = I * P * P numbers of a patch, M patches.

Source: Swin Transformer (arXiv:2103.14030), with its layer norm
(arXiv:1607.06450).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    dot_precision,
    is_misread,
    launch,
    load_channels,
    normalize,
    once_differentiable,
    store_rows,
)
from .layer_norm import layer_norm, norm_backward
from .sums import channel_sums

# More channels would not fit into the registers of a program.
_MAX_CHANNELS = 256
_MAX_BLOCK_K = 64


@triton.jit
def _patch_kernel(
    y_ptr,
    image_ptr,
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    tokens,
    height,
    width,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    eps,
    K: tl.constexpr,
    SIDE: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``y = layer_norm(patches @ weight.T + bias)``, of whole rows.

    The map of the result has ``height`` rows of ``width`` patches.
    """
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    image_ptr += (rows // width // height) * batch_stride
    image_ptr += (rows // width % height) * SIDE * row_stride
    corner = image_ptr + rows % width * SIDE * column_stride
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in tl.static_range(0, K, BLOCK_K):
        number = first + tl.arange(0, BLOCK_K)
        exists = number < K
        offset = (number // (SIDE * SIDE)).to(tl.int64) * channel_stride
        offset += number // SIDE % SIDE * row_stride
        offset += number % SIDE * column_stride
        mask = (rows < tokens)[:, None] & exists[None, :]
        x = tl.load(corner[:, None] + offset[None, :], mask, other=0.0)
        places = weight_ptr + columns[None, :] * K + number[:, None]
        mask = inside[None, :] & exists[:, None]
        weight = tl.load(places, mask, other=0.0)
        sums = tl.dot(
            x.to(dtype), weight.to(dtype), sums, input_precision=PRECISION
        )
    if bias_ptr is not None:
        sums += load_channels(bias_ptr, columns, C)[None, :]
    xhat, _ = normalize(sums, inside, eps, C)
    norm_weight = load_channels(norm_weight_ptr, columns, C)
    norm_bias = load_channels(norm_bias_ptr, columns, C)
    y = xhat * norm_weight[None, :] + norm_bias[None, :]
    mask = (rows < tokens)[:, None] & inside[None, :]
    store_rows(y_ptr, rows, C, columns, mask, y)


def _forward(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    channels, _, side, _ = weight.shape
    batch, _, height, width = image.shape
    height, width = height // side, width // side
    y = torch.empty(
        (batch, height, width, channels), dtype=dtype, device=image.device
    )
    tokens = batch * height * width
    if tokens == 0:
        return y
    if is_misread(y):
        wide = (x.to(dtype).float() for x in (image, weight))
        rest = (bias, norm_weight, norm_bias, eps, torch.float32)
        return _forward(*wide, *rest).to(dtype)
    parameters = (weight, bias, norm_weight, norm_bias)
    tensors = [None if x is None else x.contiguous() for x in parameters]
    numbers = weight[0].numel()
    block_m = 64 if dtype != torch.float32 else 32
    block_k = min(triton.next_power_of_2(max(numbers, 16)), _MAX_BLOCK_K)
    block_c = max(16, triton.next_power_of_2(channels))
    constants = (numbers, side, channels, dot_precision(y))
    launch(
        _patch_kernel,
        (triton.cdiv(tokens, block_m), 1, 1),
        (y, image, *tensors),
        (tokens, height, width, *image.stride(), float(eps)),
        (*constants, block_m, block_k, block_c),
        # The sums of a program have to fit into its registers.
        warps=8 if block_c > 64 else 4,
    )
    return y


def _linear(
    image: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Patches (B, H // P, W // P, K) in this dtype, and their linear map."""
    side = weight.shape[2]
    height, width = image.shape[2] // side, image.shape[3] // side
    x = image[:, :, : height * side, : width * side]
    x = x.unflatten(3, (width, side)).unflatten(2, (height, side))
    patches = x.permute(0, 2, 4, 1, 3, 5).to(dtype).flatten(3)
    with torch.autocast(image.device.type, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        y = F.linear(patches, weight.flatten(1).to(dtype), bias)
    return patches, y


class _PatchLayerNorm(torch.autograd.Function):
    """The backward computes the patches and their linear map again.

    Each is as large as the map of the first stage; the image is kept anyway.
    """

    @staticmethod
    def forward(ctx, image, weight, bias, norm_weight, norm_bias, eps, dtype):
        parameters = (weight, bias, norm_weight, norm_bias)
        ctx.save_for_backward(image, *parameters)
        ctx.eps, ctx.dtype = eps, dtype
        return _forward(image, *parameters, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        image, weight, bias, norm_weight, norm_bias = ctx.saved_tensors
        patches, x = _linear(image, weight, bias, ctx.dtype)
        dx, _, (dscale, dshift) = norm_backward(
            dy, x, None, norm_weight, norm_bias, ctx.eps
        )
        dx = dx.flatten(0, 2)
        with torch.autocast(image.device.type, enabled=False):
            dweight = (dx.T @ patches.flatten(0, 2)).view_as(weight)
        dbias = None
        if bias is not None:
            dbias = channel_sums(dx).to(bias.dtype)
        return (
            None,
            dweight.to(weight.dtype),
            dbias,
            dscale.to(norm_weight.dtype),
            dshift.to(norm_bias.dtype),
            None,
            None,
        )


def patch_layer_norm(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Convolve an image by its patches and normalize the channels.

    Pixels left over on the right and at the bottom are not read. One kernel
    does all of it, unless the image needs a gradient or has more than 256
    channels to embed into.

    Args:
        image: (B, I, H, W) of any layout.
        weight: As of ``nn.Conv2d`` with a stride of its side, (C, I, P, P).
        bias: (C,), or None.
        norm_weight: Scale (C,).
        norm_bias: Shift (C,).
        eps: Added to the variance.
        dtype: Dtype to compute the linear map in, and of the result.

    Returns:
        Feature map (B, H // P, W // P, C).
    """
    channels = len(weight)
    assert weight.shape[1] == image.shape[1]
    assert norm_weight.shape == norm_bias.shape == (channels,)
    assert bias is None or bias.shape == (channels,)
    with_grad = torch.is_grad_enabled()
    if channels > _MAX_CHANNELS or (with_grad and image.requires_grad):
        _, x = _linear(image, weight, bias, dtype)
        return layer_norm(x, norm_weight, norm_bias, eps, dtype)
    run = _PatchLayerNorm.apply if with_grad else _forward
    return run(image, weight, bias, norm_weight, norm_bias, eps, dtype)
