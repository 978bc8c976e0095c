"""Kernel of the linear map of a gated map, added to a residual map.

A tile is a few rows of tokens and a share of the outputs. No image begins
inside of a part of the rows, so that a part has one gate for each channel.

Shape letters: B batch, H W map, D channels, C outputs.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_linear_triton import dot_precision, is_misread
from .launch import launch
from .scale_add_triton import forward as add
from .squeeze_excite_triton import scale

# One and a half for each of the 132 processors of a large GPU. With fewer
# programs, smaller tiles are the faster ones, though they read more.
_ENOUGH_PROGRAMS = 198
# Outputs of a tile: a power of two, and the half of it or nothing, because
# the widths of networks are such and a product takes powers of two alone.
_WIDTHS = ((64, 0), (64, 32), (128, 0), (128, 64))
_MOST_IMAGES = 4


class _Plan(NamedTuple):
    """Shape of a tile, and how many there are."""

    rows: int
    span: int
    columns: int
    more: int
    programs: int


@triton.jit
def _load_weight(w_ptr, c, d, start, C: tl.constexpr, D: tl.constexpr):
    """Transposed tile of the weight."""
    inside = (c[None, :] < C) & (d[:, None] < D - start)
    places = w_ptr + start + c[None, :] * D + d[:, None]
    return tl.load(places, mask=inside, other=0.0)


@triton.jit
def _gate(
    logits_ptr, image, batch, d, start,
    D: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """How far the channels of each row are open; (1, D) for one image."""
    PARTS: tl.constexpr = ROWS // SPAN
    part = tl.arange(0, ROWS)[:, None] // SPAN
    logits_ptr += image * D + start
    mask = d < D - start
    logits = tl.load(logits_ptr + d, mask=mask, other=0.0)
    gate = tl.sigmoid(logits.to(tl.float32))[None, :]
    for i in tl.static_range(1, PARTS):
        inside = mask & (image + i < batch)
        logits = tl.load(logits_ptr + i * D + d, mask=inside, other=0.0)
        other = tl.sigmoid(logits.to(tl.float32))[None, :]
        gate = tl.where(part == i, other, gate)
    return gate


@triton.jit
def _finish(
    out_ptr, residual_ptr, bias_ptr, row, live, c, total, C: tl.constexpr
):
    """Add the bias and the residual, and write a tile."""
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + c, mask=c < C, other=0.0)
        total += bias.to(tl.float32)[None, :]
    places = row * C + c[None, :]
    mask = live & (c[None, :] < C)
    residual = tl.load(residual_ptr + places, mask=mask, other=0.0)
    total += residual.to(tl.float32)
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['batch', 'tokens'])
def _kernel(
    out_ptr, residual_ptr, x_ptr, logits_ptr, w_ptr, bias_ptr,
    batch, tokens,
    C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr,
    COLUMNS: tl.constexpr, MORE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = COLUMNS + MORE
    CHUNKS: tl.constexpr = (C + WIDTH - 1) // WIDTH
    # Programs that share a tile of the map are neighbours: one of them reads
    # it from the memory, the others from the cache.
    tile = tl.program_id(0) // CHUNKS
    tiles = tl.cdiv(tokens, SPAN)
    image = (tile // tiles).to(tl.int64) * (ROWS // SPAN)
    first = tile % tiles * SPAN
    part = tl.arange(0, ROWS)[:, None] // SPAN
    token = tl.arange(0, ROWS)[:, None] % SPAN
    live = (image + part < batch) & (first + token < tokens)
    row = part * tokens + token
    pixel = image * tokens + first
    c = tl.program_id(0) % CHUNKS * WIDTH + tl.arange(0, COLUMNS)
    d = tl.arange(0, STEP)
    x_ptr += pixel * D
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    if MORE > 0:
        more_c = tl.program_id(0) % CHUNKS * WIDTH
        more_c += COLUMNS + tl.arange(0, MORE)
        more = tl.zeros([ROWS, MORE], tl.float32)
    for start in range(0, D, STEP):
        mask = live & (d[None, :] < D - start)
        x = tl.load(x_ptr + start + (row * D + d), mask=mask, other=0.0)
        gate = _gate(logits_ptr, image, batch, d, start, D, ROWS, SPAN)
        x = (x.to(tl.float32) * gate).to(w_ptr.dtype.element_ty)
        w = _load_weight(w_ptr, c, d, start, C, D)
        total = tl.dot(x, w, total, input_precision=PRECISION)
        if MORE > 0:
            w = _load_weight(w_ptr, more_c, d, start, C, D)
            more = tl.dot(x, w, more, input_precision=PRECISION)
    out_ptr += pixel * C
    residual_ptr += pixel * C
    _finish(out_ptr, residual_ptr, bias_ptr, row, live, c, total, C)
    if MORE > 0:
        _finish(out_ptr, residual_ptr, bias_ptr, row, live, more_c, more, C)


@functools.lru_cache(maxsize=1024)
def _plan(batch: int, tokens: int, outputs: int) -> _Plan:
    """Of the tiles that fill a large GPU, the one by which least is read."""
    plans = []
    for rows in (128, 64):
        span = 1 << (tokens - 1).bit_length()
        span = max(min(span, rows), rows // _MOST_IMAGES)
        tiles = -(-batch // (rows // span)) * -(-tokens // span)
        for columns, more in _WIDTHS:
            chunks = -(-outputs // (columns + more))
            plans.append(_Plan(rows, span, columns, more, tiles * chunks))

    def cost(plan: _Plan) -> tuple[int, int]:
        read = plan.programs * (plan.rows + plan.columns + plan.more)
        return -min(plan.programs, _ENOUGH_PROGRAMS), read

    return min(plans, key=cost)


def _by_torch(
    residual: Tensor,
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        y = torch.nn.functional.linear(scale(x, logits.float()), weight, bias)
    return add(residual, y, None, None, None, None)


def forward(
    residual: Tensor,
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Launch; see :func:`.gated_linear_add.gated_linear_add`.

    Args:
        residual: Map (B, H, W, C).
        x: Map (B, H, W, D).
        logits: Gates before their sigmoid, (B, D).
        weight: (C, D).
        bias: (C,) or None.
        dtype: Dtype of the product.
    """
    weight = weight.to(dtype)
    precision = dot_precision(weight)
    if is_misread(weight):
        weight = weight.float()
    elif dtype == torch.float32 and precision == 'ieee':
        # Full precision is no matter of tensor cores, and torch's product is
        # much the faster one there.
        bias = None if bias is None else bias.to(dtype)
        return _by_torch(residual, x.to(dtype), logits, weight, bias)
    batch, height, width, channels = x.shape
    result = torch.promote_types(residual.dtype, dtype)
    out = torch.empty(residual.shape, dtype=result, device=x.device)
    if out.numel() == 0:
        return out
    plan = _plan(batch, height * width, len(weight))
    launch(
        _kernel,
        (plan.programs, 1, 1),
        (
            out, residual.contiguous(), x.contiguous(), logits.contiguous(),
            weight.contiguous(), None if bias is None else bias.contiguous(),
        ),
        (batch, height * width),
        (
            len(weight), channels, precision, plan.rows, plan.span,
            plan.columns, plan.more, 32 if weight.itemsize == 2 else 16,
        ),
        warps=8 if plan.rows == 128 else 4,
        stages=4,
    )  # fmt: skip
    return out
