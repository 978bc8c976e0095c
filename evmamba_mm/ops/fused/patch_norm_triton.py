"""Kernel of the stem: patches, their linear map and its layer norm.

Shape letters: B batch, I channels of the image, H W image, P side of a patch,
C channels, K = I P P numbers of a patch, T patches.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_linear_triton import dot_precision, is_misread
from .launch import launch
from .norm_triton import normalise, store_rows

_MOST_NUMBERS = 64


@triton.jit
def _patch_kernel(
    out_ptr,
    image_ptr,
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    tokens,
    along,
    across,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    eps,
    K: tl.constexpr,
    SIDE: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    NUMBERS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    image_ptr += (rows // across // along) * batch_stride
    image_ptr += (rows // across % along) * SIDE * row_stride
    corner = image_ptr + rows % across * SIDE * column_stride
    sums = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for first in tl.static_range(0, K, NUMBERS):
        number = first + tl.arange(0, NUMBERS)
        known = number < K
        offset = (number // (SIDE * SIDE)).to(tl.int64) * channel_stride
        offset += number // SIDE % SIDE * row_stride
        offset += number % SIDE * column_stride
        mask = (rows < tokens)[:, None] & known[None, :]
        x = tl.load(corner[:, None] + offset[None, :], mask, other=0.0)
        place = weight_ptr + columns[None, :] * K + number[:, None]
        mask = inside[None, :] & known[:, None]
        weight = tl.load(place, mask, other=0.0)
        sums = tl.dot(
            x.to(dtype), weight.to(dtype), sums, input_precision=PRECISION
        )
    bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    normed, _ = normalise(sums + bias[None, :], inside, eps, C)
    scale = tl.load(norm_weight_ptr + columns, inside, other=0.0)
    shift = tl.load(norm_bias_ptr + columns, inside, other=0.0)
    out = normed * scale.to(tl.float32)[None, :] + shift.to(tl.float32)
    mask = (rows < tokens)[:, None] & inside[None, :]
    store_rows(out_ptr, rows, C, columns, mask, out)


def patch_forward(
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the kernel; see :func:`.patch_norm.patch_layer_norm`."""
    channels, _, side, _ = weight.shape
    batch, _, height, width = image.shape
    along, across = height // side, width // side
    shape = (batch, along, across, channels)
    out = torch.empty(shape, dtype=dtype, device=image.device)
    tokens = batch * along * across
    if tokens == 0:
        return out
    if is_misread(out):
        wide = (x.to(dtype).float() for x in (image, weight))
        rest = (bias, norm_weight, norm_bias, eps, torch.float32)
        return patch_forward(*wide, *rest).to(dtype)
    numbers = weight[0].numel()
    columns = max(16, triton.next_power_of_2(channels))
    rows = 64 if dtype != torch.float32 else 32
    parameters = (weight, bias, norm_weight, norm_bias)
    at_once = min(triton.next_power_of_2(max(numbers, 16)), _MOST_NUMBERS)
    launch(
        _patch_kernel,
        (triton.cdiv(tokens, rows), 1, 1),
        (out, image, *(x.contiguous() for x in parameters)),
        (tokens, along, across, *image.stride(), float(eps)),
        (
            numbers, side, channels, dot_precision(out),
            rows, at_once, columns,
        ),
        # What a program sums up has to fit into its registers.
        warps=8 if columns > 64 else 4,
    )  # fmt: skip
    return out
