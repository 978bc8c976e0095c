"""Depthwise 3x3 convolution, channels last, with the layers around it.

A patch is a few neighbouring columns of a strip of rows: four in the
convolution, two in the gradient. A program takes some patches and channels and
walks down the strip: it reads each row of the input once, two columns wider
than the patch, for the three rows of the output around it.

Shape letters: B batch, H W feature map, C channels.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .batch_norm import ChannelNorm, norm_arguments, norm_relu_backward
from .common import (
    activate,
    activation_grad,
    dense_like,
    launch,
    once_differentiable,
    pixel_rows,
)
from .sums import sum_parts, sum_parts_turned


@triton.jit
def _locate(
    first, height, width, rows, BLOCK_P: tl.constexpr, COLUMNS: tl.constexpr
):
    """Patches, their first row, column and pixel, (P, 1) each."""
    patch = first + tl.arange(0, BLOCK_P)[:, None]
    across = (width + COLUMNS - 1) // COLUMNS
    strips = (height + rows - 1) // rows
    col = COLUMNS * (patch % across)
    rest = patch // across
    top = (rest % strips) * rows
    pixel = ((rest // strips).to(tl.int64) * height + top) * width + col
    return patch, top, col, pixel


@triton.jit
def _load_vector(x_ptr, c, mask):
    return tl.load(x_ptr + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_weight(w_ptr, c, mask, scale, ROW: tl.constexpr, FLIP: tl.constexpr):
    """A row of the 3x3 weight, or of the rotated one, times a scale."""
    STEP: tl.constexpr = -1 if FLIP else 1
    w = w_ptr + c * 9 + (8 - 3 * ROW if FLIP else 3 * ROW)
    w0 = tl.load(w, mask=mask, other=0.0).to(tl.float32)
    w1 = tl.load(w + STEP, mask=mask, other=0.0).to(tl.float32)
    w2 = tl.load(w + 2 * STEP, mask=mask, other=0.0).to(tl.float32)
    return w0 * scale, w1 * scale, w2 * scale


@triton.jit
def _load_norm(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, c, mask):
    """A ChannelNorm as ``(y - mean) * scale + bias``."""
    var = tl.load(var_ptr + c, mask=mask, other=1.0).to(tl.float32)
    scale = _load_vector(weight_ptr, c, mask) * tl.rsqrt(var + eps)
    mean = _load_vector(mean_ptr, c, mask)
    return mean, scale, _load_vector(bias_ptr, c, mask)


@triton.jit
def _load_row(x, stride, mask, col, width):
    """Columns col - 1 to col + 2 of a row, zero outside."""
    x0 = tl.load(x - stride, mask=mask & (col > 0), other=0.0)
    x1 = tl.load(x, mask=mask, other=0.0)
    x2 = tl.load(x + stride, mask=mask & (col + 1 < width), other=0.0)
    x3 = tl.load(x + 2 * stride, mask=mask & (col + 2 < width), other=0.0)
    return x0, x1, x2, x3


@triton.jit
def _load_pair(x, stride, mask, col, width):
    """Columns col and col + 1 of a row, zero outside."""
    x0 = tl.load(x, mask=mask & (col < width), other=0.0)
    x1 = tl.load(x + stride, mask=mask & (col + 1 < width), other=0.0)
    return x0, x1


@triton.jit
def _load_wide_row(x, stride, mask, col, width):
    """Columns col - 1 to col + 4 of a row, zero outside."""
    x0, x1, x2, x3 = _load_row(x, stride, mask, col, width)
    x4, x5 = _load_pair(x + 3 * stride, stride, mask, col + 3, width)
    return x0, x1, x2, x3, x4, x5


# The convolution pads its input with zeros after the norm. An activation that
# follows must keep zero.
@triton.jit
def _prepare(
    x, mean, scale, bias, inside, NORM: tl.constexpr, ACTIVATION: tl.constexpr
):
    """A column after norm and activation, and zero outside of the map."""
    if NORM:
        # The mean first: it may be far from zero, beside a small variance.
        x = tl.where(inside, (x.to(tl.float32) - mean) * scale + bias, 0.0)
    return activate(x, ACTIVATION)


@triton.jit
def _prepare_row(
    x0, x1, x2, x3, mean, scale, bias, inside, col, width,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Columns col - 1 to col + 2 of a row after norm and activation."""
    x0 = _prepare(x0, mean, scale, bias, inside & (col > 0), NORM, ACTIVATION)
    x1 = _prepare(x1, mean, scale, bias, inside, NORM, ACTIVATION)
    inside &= col + 1 < width
    x2 = _prepare(x2, mean, scale, bias, inside, NORM, ACTIVATION)
    inside &= col + 2 < width
    x3 = _prepare(x3, mean, scale, bias, inside, NORM, ACTIVATION)
    return x0, x1, x2, x3


@triton.jit
def _prepare_wide_row(
    x0, x1, x2, x3, x4, x5, mean, scale, bias, inside, col, width,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Columns col - 1 to col + 4 of a row after norm and activation."""
    x0, x1, x2, x3 = _prepare_row(
        x0, x1, x2, x3, mean, scale, bias, inside, col, width, NORM, ACTIVATION
    )
    inside &= col + 3 < width
    x4 = _prepare(x4, mean, scale, bias, inside, NORM, ACTIVATION)
    inside &= col + 4 < width
    x5 = _prepare(x5, mean, scale, bias, inside, NORM, ACTIVATION)
    return x0, x1, x2, x3, x4, x5


@triton.jit
def _store_pair(y, stride, mask, col, width, y0, y1, ACTIVATION: tl.constexpr):
    """Activate and write columns col and col + 1 of a row; their sum."""
    y0, y1 = activate(y0, ACTIVATION), activate(y1, ACTIVATION)
    left, right = mask & (col < width), mask & (col + 1 < width)
    tl.store(y, y0, mask=left)
    tl.store(y + stride, y1, mask=right)
    return tl.where(left, y0, 0.0) + tl.where(right, y1, 0.0)


@triton.jit
def _store_row(
    y, stride, mask, col, width, y0, y1, y2, y3, ACTIVATION: tl.constexpr
):
    """Activate and write columns col to col + 3 of a row; their sum."""
    left = _store_pair(y, stride, mask, col, width, y0, y1, ACTIVATION)
    y += 2 * stride
    return left + _store_pair(
        y, stride, mask, col + 2, width, y2, y3, ACTIVATION
    )


@triton.jit
def _correlate(left, right, x0, x1, x2, x3, w0, w1, w2):
    """Add the part of a row of the weight to the sums at both columns."""
    x0, x1 = x0.to(tl.float32), x1.to(tl.float32)
    x2, x3 = x2.to(tl.float32), x3.to(tl.float32)
    # One term at a time, so that each is one fused multiply-add.
    left = left + x0 * w0
    left = left + x1 * w1
    left = left + x2 * w2
    right = right + x1 * w0
    right = right + x2 * w1
    right = right + x3 * w2
    return left, right


@triton.jit
def _accumulate(g0, g1, g2, left, right, x0, x1, x2, x3):
    """Add the part of both columns to the gradients of a row of the weight."""
    x0, x1 = x0.to(tl.float32), x1.to(tl.float32)
    x2, x3 = x2.to(tl.float32), x3.to(tl.float32)
    g0 = g0 + left * x0
    g0 = g0 + right * x1
    g1 = g1 + left * x1
    g1 = g1 + right * x2
    g2 = g2 + left * x2
    g2 = g2 + right * x3
    return g0, g1, g2


@triton.jit
def _store_sums(sums, channels, g0, g1, g2, mask):
    tl.store(sums, tl.sum(g0, axis=0, keep_dims=True), mask=mask)
    sums += channels
    tl.store(sums, tl.sum(g1, axis=0, keep_dims=True), mask=mask)
    sums += channels
    tl.store(sums, tl.sum(g2, axis=0, keep_dims=True), mask=mask)


_SIZES = ['patches', 'height', 'width', 'rows', 'blocks', 'slots']


# y = activation(norm(bias + sum of weight[i, j] * u[row + i, col + j])),
# u = input_activation(input_norm(x)) inside of the map and 0 outside. The
# norm goes into the weight and the bias, once in each program. Each patch
# leaves its share of the mean of y where there is a place for it.
@triton.jit(do_not_specialize=_SIZES)
def _conv_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, sums_ptr,
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,
    in_weight_ptr, in_bias_ptr, in_mean_ptr, in_var_ptr,
    patches, height, width, rows, channels, stride, norm_eps, in_eps,
    FLIP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    ACTIVATION: tl.constexpr, INPUT_ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Convolve; with FLIP by the rotated weight, for the gradient of x."""
    chunks = tl.cdiv(channels, BLOCK_C)
    c = tl.program_id(0) % chunks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    patch, top, col, pixel = _locate(
        tl.program_id(0) // chunks * BLOCK_P, height, width, rows, BLOCK_P, 4
    )
    live = c < channels
    mask = (patch < patches) & live
    start = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if bias_ptr is not None:
        start += _load_vector(bias_ptr, c, live)
    scale, in_mean, in_scale, in_bias = 1.0, 0.0, 1.0, 0.0
    if norm_weight_ptr is not None:
        mean, scale, shift = _load_norm(
            norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,
            norm_eps, c, live,
        )  # fmt: skip
        start = (start - mean) * scale + shift
    w0, w1, w2 = _load_weight(w_ptr, c, live, scale, 0, FLIP)
    w3, w4, w5 = _load_weight(w_ptr, c, live, scale, 1, FLIP)
    w6, w7, w8 = _load_weight(w_ptr, c, live, scale, 2, FLIP)
    if in_weight_ptr is not None:
        in_mean, in_scale, in_bias = _load_norm(
            in_weight_ptr, in_bias_ptr, in_mean_ptr, in_var_ptr,
            in_eps, c, live,
        )  # fmt: skip
    x = x_ptr + (pixel - width) * stride + c
    y = y_ptr + (pixel - 2 * width) * channels + c
    # Sums of the rows above and at the one that is read, two columns each.
    above0, above1, above2, above3 = start, start, start, start
    here0, here1, here2, here3 = start, start, start, start
    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    r0, r1, r2, r3, r4, r5 = _load_wide_row(
        x, stride, mask & (top > 0), col, width
    )
    for i in range(rows + 2):
        # The next row is on its way while this one is computed with.
        x += width * stride
        inside = mask & (top + i < height) & (i <= rows)
        n0, n1, n2, n3, n4, n5 = _load_wide_row(x, stride, inside, col, width)
        r0, r1, r2, r3, r4, r5 = _prepare_wide_row(
            r0, r1, r2, r3, r4, r5, in_mean, in_scale, in_bias,
            (top + i > 0) & (top + i <= height), col, width,
            in_weight_ptr is not None, INPUT_ACTIVATION,
        )  # fmt: skip
        y0, y1 = _correlate(above0, above1, r0, r1, r2, r3, w6, w7, w8)
        y2, y3 = _correlate(above2, above3, r2, r3, r4, r5, w6, w7, w8)
        above0, above1 = _correlate(here0, here1, r0, r1, r2, r3, w3, w4, w5)
        above2, above3 = _correlate(here2, here3, r2, r3, r4, r5, w3, w4, w5)
        here0, here1 = _correlate(start, start, r0, r1, r2, r3, w0, w1, w2)
        here2, here3 = _correlate(start, start, r2, r3, r4, r5, w0, w1, w2)
        done = mask & (i >= 2) & (top + i - 2 < height)
        sums += _store_row(
            y, channels, done, col, width, y0, y1, y2, y3, ACTIVATION
        )
        y += width * channels
        r0, r1, r2, r3, r4, r5 = n0, n1, n2, n3, n4, n5
    if sums_ptr is not None:
        places = sums_ptr + patch.to(tl.int64) * channels + c
        tl.store(places, sums / (height * width), mask=mask)


@triton.jit
def _preactivation_grad(
    d0, d1, t0, t1, t2, t3, m0, m1, m2, m3, b0, b1, b2, b3,
    w0, w1, w2, w3, w4, w5, w6, w7, w8, bias, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``dz = dy * activation'(z)``, z computed again from three rows of x."""
    d0, d1 = d0.to(tl.float32), d1.to(tl.float32)
    if ACTIVATION != 'none':
        z0, z1 = _correlate(bias, bias, t0, t1, t2, t3, w0, w1, w2)
        z0, z1 = _correlate(z0, z1, m0, m1, m2, m3, w3, w4, w5)
        z0, z1 = _correlate(z0, z1, b0, b1, b2, b3, w6, w7, w8)
        d0 *= activation_grad(z0, ACTIVATION)
        d1 *= activation_grad(z1, ACTIVATION)
    return d0, d1


@triton.jit
def _walk_down(
    x, dy, dz, mask, top, col, height, width, rows,
    channels, stride, dy_stride, in_mean, in_scale, in_bias,
    w0, w1, w2, w3, w4, w5, w6, w7, w8, bias,
    g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, ACTIVATION: tl.constexpr,
    NORM: tl.constexpr, INPUT_ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Add the part of a strip, whose first pixel is pointed at, to sums."""
    line = width * stride
    # Rows at the top, in the middle and at the bottom of the window.
    inside = mask & (top > 0)
    t0, t1, t2, t3 = _load_row(x - line, stride, inside, col, width)
    t0, t1, t2, t3 = _prepare_row(
        t0, t1, t2, t3, in_mean, in_scale, in_bias, inside, col, width,
        NORM, INPUT_ACTIVATION,
    )  # fmt: skip
    m0, m1, m2, m3 = _load_row(x, stride, mask, col, width)
    m0, m1, m2, m3 = _prepare_row(
        m0, m1, m2, m3, in_mean, in_scale, in_bias, mask, col, width,
        NORM, INPUT_ACTIVATION,
    )  # fmt: skip
    x += line
    inside = mask & (top + 1 < height)
    b0, b1, b2, b3 = _load_row(x, stride, inside, col, width)
    b0, b1, b2, b3 = _prepare_row(
        b0, b1, b2, b3, in_mean, in_scale, in_bias, inside, col, width,
        NORM, INPUT_ACTIVATION,
    )  # fmt: skip
    d0, d1 = _load_pair(dy, dy_stride, mask, col, width)
    for i in range(rows):
        # The next row is on its way while this one is computed with.
        x += line
        dy += width * dy_stride
        inside = mask & (i + 1 < rows) & (top + i + 1 < height)
        e0, e1 = _load_pair(dy, dy_stride, inside, col, width)
        inside &= top + i + 2 < height
        n0, n1, n2, n3 = _load_row(x, stride, inside, col, width)
        p0, p1 = _preactivation_grad(
            d0, d1, t0, t1, t2, t3, m0, m1, m2, m3, b0, b1, b2, b3,
            w0, w1, w2, w3, w4, w5, w6, w7, w8, bias, ACTIVATION,
        )  # fmt: skip
        if ACTIVATION != 'none':
            done = mask & (top + i < height)
            tl.store(dz, p0, mask=done)
            tl.store(dz + channels, p1, mask=done & (col + 1 < width))
            dz += width * channels
        g0, g1, g2 = _accumulate(g0, g1, g2, p0, p1, t0, t1, t2, t3)
        g3, g4, g5 = _accumulate(g3, g4, g5, p0, p1, m0, m1, m2, m3)
        g6, g7, g8 = _accumulate(g6, g7, g8, p0, p1, b0, b1, b2, b3)
        g9 += p0 + p1
        t0, t1, t2, t3 = m0, m1, m2, m3
        m0, m1, m2, m3 = b0, b1, b2, b3
        b0, b1, b2, b3 = _prepare_row(
            n0, n1, n2, n3, in_mean, in_scale, in_bias, inside, col, width,
            NORM, INPUT_ACTIVATION,
        )  # fmt: skip
        d0, d1 = e0, e1
    return g0, g1, g2, g3, g4, g5, g6, g7, g8, g9


# dz = dy * activation'(z), dbias = sum of dz,
# dweight[i, j] = sum of dz[row, col] * u[row + i, col + j], u as above.
# Then du is the convolution of dz by the rotated weight.
@triton.jit(do_not_specialize=_SIZES)
def _grad_kernel(
    x_ptr, w_ptr, bias_ptr, dy_ptr, dz_ptr, sums_ptr,
    in_weight_ptr, in_bias_ptr, in_mean_ptr, in_var_ptr,
    patches, height, width, rows, blocks, slots, channels, stride, dy_stride,
    in_eps, ACTIVATION: tl.constexpr, INPUT_ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation; sums of the weight's and the bias's."""
    chunks = tl.cdiv(channels, BLOCK_C)
    slot = tl.program_id(0) // chunks
    c = (tl.program_id(0) % chunks) * BLOCK_C
    c += tl.arange(0, BLOCK_C)[None, :]
    inside = c < channels
    w0, w1, w2 = _load_weight(w_ptr, c, inside, 1.0, 0, False)
    w3, w4, w5 = _load_weight(w_ptr, c, inside, 1.0, 1, False)
    w6, w7, w8 = _load_weight(w_ptr, c, inside, 1.0, 2, False)
    zero = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    bias = zero
    if bias_ptr is not None:
        bias += _load_vector(bias_ptr, c, inside)
    in_mean, in_scale, in_bias = 0.0, 1.0, 0.0
    if in_weight_ptr is not None:
        in_mean, in_scale, in_bias = _load_norm(
            in_weight_ptr, in_bias_ptr, in_mean_ptr, in_var_ptr,
            in_eps, c, inside,
        )  # fmt: skip
    g0, g1, g2, g3, g4 = zero, zero, zero, zero, zero
    g5, g6, g7, g8, g9 = zero, zero, zero, zero, zero
    for block in range(slot, blocks, slots):
        patch, top, col, pixel = _locate(
            block * BLOCK_P, height, width, rows, BLOCK_P, 2
        )
        g0, g1, g2, g3, g4, g5, g6, g7, g8, g9 = _walk_down(
            x_ptr + pixel * stride + c,
            dy_ptr + pixel * dy_stride + c,
            dz_ptr + pixel * channels + c,
            (patch < patches) & inside, top, col, height, width, rows,
            channels, stride, dy_stride, in_mean, in_scale, in_bias,
            w0, w1, w2, w3, w4, w5, w6, w7, w8, bias,
            g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, ACTIVATION,
            in_weight_ptr is not None, INPUT_ACTIVATION,
        )  # fmt: skip
    sums = sums_ptr + slot * 10 * channels + c
    _store_sums(sums, channels, g0, g1, g2, inside)
    _store_sums(sums + 3 * channels, channels, g3, g4, g5, inside)
    _store_sums(sums + 6 * channels, channels, g6, g7, g8, inside)
    total = tl.sum(g9, axis=0, keep_dims=True)
    tl.store(sums + 9 * channels, total, mask=inside)


_WARPS = 2
# Channels of a thread. With more, the nine weights and the sums of each fill
# the registers, which a GELU, or the activation's gradient, needs too.
_PER_THREAD = 4
_PER_THREAD_IF_FULL = 2
_MAX_ROWS = 14


def _enough_programs() -> int:
    return 4 * common.LIMITS.multiprocessors


class Plan(NamedTuple):
    """How a map is cut: in patches and strips of rows."""

    block_p: int
    block_c: int
    rows: int
    patches: int
    blocks: int
    chunks: int


def _cut(shape: tuple[int, ...], columns: int, per_thread: int) -> Plan:
    batch, height, width, channels = shape
    # The block that wastes least of the channels, and the widest such.
    block_c = min((64, 32, 16), key=lambda c: -(-channels // c) * c)
    block_p = _WARPS * 32 * per_thread // block_c
    chunks = -(-channels // block_c)
    across = batch * -(-width // columns)

    def blocks(rows: int) -> int:
        return -(-across * -(-height // rows) // block_p)

    # Few rows are read twice, if programs enough are left.
    by_reads = sorted(
        range(_MAX_ROWS, 0, -1),
        key=lambda rows: -(-height // rows) * (rows + 2),
    )
    enough = _enough_programs()
    rows = next((r for r in by_reads if blocks(r) * chunks >= enough), 1)
    patches = across * -(-height // rows)
    return Plan(block_p, block_c, rows, patches, blocks(rows), chunks)


@functools.lru_cache(maxsize=1024)
def conv_plan(shape: tuple[int, ...], activation: str) -> Plan:
    """For a convolution of a feature map (B, H, W, C)."""
    full = activation == 'gelu'
    return _cut(shape, 4, _PER_THREAD_IF_FULL if full else _PER_THREAD)


@functools.lru_cache(maxsize=1024)
def gradient_plan(shape: tuple[int, ...], activation: str) -> Plan:
    """For the gradients of the weight and before the activation."""
    full = activation != 'none'
    return _cut(shape, 2, _PER_THREAD_IF_FULL if full else _PER_THREAD)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    flip: bool,
    activation: str,
    norm: ChannelNorm | None = None,
    input_norm: ChannelNorm | None = None,
    input_activation: str = 'none',
    pooled: bool = False,
) -> Tensor | None:
    """Write y; with ``pooled``, return the mean of its pixels, (B, C)."""
    x, stride = pixel_rows(x)
    batch, height, width, channels = x.shape
    bias = None if bias is None else bias.contiguous()
    norm_vectors, norm_eps = norm_arguments(norm)
    in_vectors, in_eps = norm_arguments(input_norm)
    vectors = (bias, *norm_vectors, *in_vectors)
    assert weight.shape == (channels, 1, 3, 3), weight.shape
    assert all(v is None or v.shape == (channels,) for v in vectors)
    plan = conv_plan(x.shape, activation)
    sums = None
    if pooled:
        shape = batch, plan.patches // batch, channels
        sums = torch.empty(shape, dtype=torch.float32, device=x.device)
    launch(
        _conv_kernel,
        (plan.blocks * plan.chunks, 1, 1),
        (x, weight.contiguous(), bias, y, sums, *vectors[1:]),
        (
            plan.patches, height, width, plan.rows, channels, stride,
            norm_eps, in_eps,
        ),
        (flip, plan.block_p, plan.block_c, activation, input_activation),
        _WARPS,
    )  # fmt: skip
    return sum_parts(sums, 1, y.dtype) if pooled else None


def conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    norm_relu: ChannelNorm | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the backward, for what the norm of x and its ReLU give.

    Returns:
        Gradient of what is convolved, and in fp32 those of the weight and then
        of the bias, (9 C + C,). The bias's is there even if the bias is not.
    """
    dx = dense_like(x, x.dtype)
    if x.numel() == 0:
        return dx, x.new_zeros(10 * x.shape[3], dtype=torch.float32)
    x, stride = pixel_rows(x)
    dy, dy_stride = pixel_rows(dy)
    _, height, width, channels = x.shape
    plan = gradient_plan(x.shape, activation)
    in_vectors, in_eps = norm_arguments(norm_relu)
    in_activation = 'none' if norm_relu is None else 'relu'
    dz = dy if activation == 'none' else torch.empty_like(dx)
    # As many blocks for each program, so that all end at one time.
    turns = -(-plan.blocks * plan.chunks // common.LIMITS.partial_sums)
    slots = -(-plan.blocks // turns)
    sums = torch.empty(
        slots, 10, channels, dtype=torch.float32, device=x.device
    )
    launch(
        _grad_kernel,
        (slots * plan.chunks, 1, 1),
        (
            x, weight.contiguous(),
            None if bias is None else bias.contiguous(), dy, dz, sums,
            *in_vectors,
        ),
        (
            plan.patches, height, width, plan.rows, plan.blocks, slots,
            channels, stride, dy_stride, in_eps,
        ),
        (activation, in_activation, plan.block_p, plan.block_c),
        _WARPS,
    )  # fmt: skip
    _convolve(dz, weight, None, dx, True, 'none')
    return dx, sum_parts_turned(sums)


def split_sums(
    sums: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weight and the bias in their dtypes."""
    dweight, dbias = sums.split(weight.numel())
    dweight = dweight.view(weight.shape).to(weight.dtype)
    return dweight, None if bias is None else dbias.to(bias.dtype)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, activation, dtype, settings, *norm):
        ctx.save_for_backward(x, weight, bias, *norm)
        ctx.activation, ctx.settings = activation, settings
        norm = ChannelNorm(*norm, *settings) if norm else None
        return _forward(x, weight, bias, activation, dtype, norm)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, *norm = ctx.saved_tensors
        norm = ChannelNorm(*norm, *ctx.settings) if norm else None
        dx, sums = conv_backward(dy, x, weight, bias, ctx.activation, norm)
        dx, *dnorm = norm_relu_backward(dx, x, norm)
        return dx, *split_sums(sums, weight, bias), None, None, None, *dnorm


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    norm: ChannelNorm | None,
) -> Tensor:
    return depthwise_conv3x3_inference(
        *(x, weight, bias, activation, dtype),
        input_norm=norm,
        input_activation='none' if norm is None else 'relu',
    )


def depthwise_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    norm_relu: ChannelNorm | None = None,
) -> Tensor:
    """Convolve each channel by 3x3 at stride 1, then activate.

    The padding is zero. The kernels compute in fp32 and store only their
    inputs for the backward: of a norm before the convolution its input alone.

    Args:
        x: Feature map of shape (B, H, W, C), channels innermost in memory;
            another layout is copied.
        weight: As of ``nn.Conv2d`` with C groups, (C, 1, 3, 3).
        bias: (C,) or None.
        activation: 'none', 'relu', 'gelu' (the exact one) or 'silu'.
        dtype: Dtype of the result.
        norm_relu: Norm of x before the convolution, with ReLU, or None.

    Returns:
        Feature map of shape (B, H, W, C).
    """
    if not torch.is_grad_enabled():
        return _forward(x, weight, bias, activation, dtype, norm_relu)
    norm = () if norm_relu is None else norm_relu
    return _DepthwiseConv.apply(
        *(x, weight, bias, activation, dtype, norm[4:], *norm[:4])
    )


def depthwise_conv3x3_inference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    dtype: torch.dtype,
    norm: ChannelNorm | None = None,
    input_norm: ChannelNorm | None = None,
    input_activation: str = 'none',
    pooled: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve with the norms and activations around it, in one kernel.

    The result is ``activation(norm(conv(input_activation(input_norm(x)))))``
    and has no gradient. The convolution pads with zeros what the input's
    activation returns.

    Args:
        x: Feature map of shape (B, H, W, C), channels innermost in memory;
            another layout is copied.
        weight: As of ``nn.Conv2d`` with C groups, (C, 1, 3, 3).
        bias: (C,) or None.
        activation: 'none', 'relu', 'gelu' (the exact one) or 'silu'.
        dtype: Dtype of the result.
        norm: BatchNorm behind the convolution, in evaluation.
        input_norm: BatchNorm before the convolution, in evaluation.
        input_activation: 'none' or 'relu'.
        pooled: Whether to return the mean of its pixels too; x is not empty.

    Returns:
        Feature map (B, H, W, C), and its mean (B, C) if asked for.
    """
    y, mean = dense_like(x, dtype), None
    if y.numel() > 0:
        mean = _convolve(
            x, weight, bias, y, False, activation,
            norm, input_norm, input_activation, pooled,
        )  # fmt: skip
    return (y, mean) if pooled else y
