"""Depthwise 3x3 convolution of a channels-last map and its backward.

A patch is two neighbouring columns of a strip of rows. A program takes some
patches and channels and walks down the strip: each row of the input is read
once, four columns wide, and serves the three rows of the output around it.

Shape letters: B batch, H W map, C channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations_triton import activate, slope
from .depthwise_plan import ENOUGH_PROGRAMS, gradient_plan, plan_conv
from .launch import launch
from .pixels import pixel_rows
from .sums_triton import add_up_turned
from .tiles import dense_like


@triton.jit
def _locate(first, patches, height, width, rows, BLOCK_P: tl.constexpr):
    """Whether a patch exists, its first row, column and pixel, (P, 1) each."""
    patch = first + tl.arange(0, BLOCK_P)[:, None]
    pairs = (width + 1) // 2
    strips = (height + rows - 1) // rows
    col = 2 * (patch % pairs)
    rest = patch // pairs
    top = (rest % strips) * rows
    pixel = ((rest // strips).to(tl.int64) * height + top) * width + col
    return patch < patches, top, col, pixel


@triton.jit
def _load_weight(w_ptr, c, mask, FIRST: tl.constexpr, STEP: tl.constexpr):
    w = w_ptr + c * 9 + FIRST
    w0 = tl.load(w, mask=mask, other=0.0).to(tl.float32)
    w1 = tl.load(w + STEP, mask=mask, other=0.0).to(tl.float32)
    w2 = tl.load(w + 2 * STEP, mask=mask, other=0.0).to(tl.float32)
    return w0, w1, w2


@triton.jit
def _load_row(x, stride, mask, col, width):
    """Columns col - 1 to col + 2 of a row, zero outside of the map."""
    x0 = tl.load(x - stride, mask=mask & (col > 0), other=0.0)
    x1 = tl.load(x, mask=mask, other=0.0)
    x2 = tl.load(x + stride, mask=mask & (col + 1 < width), other=0.0)
    x3 = tl.load(x + 2 * stride, mask=mask & (col + 2 < width), other=0.0)
    return x0, x1, x2, x3


@triton.jit
def _load_pair(x, stride, mask, col, width):
    """Columns col and col + 1 of a row."""
    x0 = tl.load(x, mask=mask, other=0.0)
    x1 = tl.load(x + stride, mask=mask & (col + 1 < width), other=0.0)
    return x0, x1


@triton.jit
def _correlate(left, right, x0, x1, x2, x3, w0, w1, w2):
    """Add three weights' part to the sums at both columns."""
    x0, x1 = x0.to(tl.float32), x1.to(tl.float32)
    x2, x3 = x2.to(tl.float32), x3.to(tl.float32)
    left += x0 * w0 + x1 * w1 + x2 * w2
    right += x1 * w0 + x2 * w1 + x3 * w2
    return left, right


@triton.jit
def _accumulate(g0, g1, g2, left, right, x0, x1, x2, x3):
    """Add both columns' part to the gradients of three weights."""
    x0, x1 = x0.to(tl.float32), x1.to(tl.float32)
    x2, x3 = x2.to(tl.float32), x3.to(tl.float32)
    g0 += left * x0 + right * x1
    g1 += left * x1 + right * x2
    g2 += left * x2 + right * x3
    return g0, g1, g2


@triton.jit
def _store_sums(sums, channels, g0, g1, g2, mask):
    tl.store(sums, tl.sum(g0, axis=0, keep_dims=True), mask=mask)
    sums += channels
    tl.store(sums, tl.sum(g1, axis=0, keep_dims=True), mask=mask)
    sums += channels
    tl.store(sums, tl.sum(g2, axis=0, keep_dims=True), mask=mask)


_SIZES = ['patches', 'height', 'width', 'rows', 'blocks', 'slots']


@triton.jit(do_not_specialize=_SIZES)
def _conv_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr,
    patches, height, width, rows, channels, stride,
    HAS_BIAS: tl.constexpr, FLIP: tl.constexpr, ACTIVATION: tl.constexpr,
    BEFORE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Convolve; with FLIP by the weight turned around, for the gradient."""
    FIRST: tl.constexpr = 8 if FLIP else 0
    STEP: tl.constexpr = -1 if FLIP else 1
    chunks = tl.cdiv(channels, BLOCK_C)
    pid = tl.program_id(0)
    c = (pid % chunks) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    live, top, col, pixel = _locate(
        (pid // chunks) * BLOCK_P, patches, height, width, rows, BLOCK_P
    )
    mask = live & (c < channels)
    w0, w1, w2 = _load_weight(w_ptr, c, c < channels, FIRST, STEP)
    w3, w4, w5 = _load_weight(w_ptr, c, c < channels, FIRST + 3 * STEP, STEP)
    w6, w7, w8 = _load_weight(w_ptr, c, c < channels, FIRST + 6 * STEP, STEP)
    start = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0)
        start += bias.to(tl.float32)
    x = x_ptr + (pixel - width) * stride + c
    y = y_ptr + (pixel - 2 * width) * channels + c
    # Sums of the rows above and at the one that is read.
    above0, above1, here0, here1 = start, start, start, start
    r0, r1, r2, r3 = _load_row(x, stride, mask & (top > 0), col, width)
    for i in range(rows + 2):
        # The next row is on its way while this one is computed with.
        x += width * stride
        more = mask & (top + i < height) & (i <= rows)
        n0, n1, n2, n3 = _load_row(x, stride, more, col, width)
        r0, r1 = activate(r0, BEFORE), activate(r1, BEFORE)
        r2, r3 = activate(r2, BEFORE), activate(r3, BEFORE)
        y0, y1 = _correlate(above0, above1, r0, r1, r2, r3, w6, w7, w8)
        above0, above1 = _correlate(here0, here1, r0, r1, r2, r3, w3, w4, w5)
        here0, here1 = _correlate(start, start, r0, r1, r2, r3, w0, w1, w2)
        done = mask & (i >= 2) & (top + i - 2 < height)
        tl.store(y, activate(y0, ACTIVATION), mask=done)
        done &= col + 1 < width
        tl.store(y + channels, activate(y1, ACTIVATION), mask=done)
        y += width * channels
        r0, r1, r2, r3 = n0, n1, n2, n3


@triton.jit
def _pre_gradient(
    d0, d1, t0, t1, t2, t3, m0, m1, m2, m3, b0, b1, b2, b3,
    w0, w1, w2, w3, w4, w5, w6, w7, w8, bias, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation, from three rows of the input."""
    d0, d1 = d0.to(tl.float32), d1.to(tl.float32)
    if ACTIVATION != 'none':
        p0, p1 = _correlate(bias, bias, t0, t1, t2, t3, w0, w1, w2)
        p0, p1 = _correlate(p0, p1, m0, m1, m2, m3, w3, w4, w5)
        p0, p1 = _correlate(p0, p1, b0, b1, b2, b3, w6, w7, w8)
        d0 *= slope(p0, ACTIVATION)
        d1 *= slope(p1, ACTIVATION)
    return d0, d1


@triton.jit
def _walk_down(
    x, dy, dpre, mask, top, col, height, width, rows,
    channels, stride, dy_stride, w0, w1, w2, w3, w4, w5, w6, w7, w8, bias,
    g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Add the part of a strip, whose first pixel is pointed at, to sums."""
    line = width * stride
    more = mask & (top > 0)
    t0, t1, t2, t3 = _load_row(x - line, stride, more, col, width)
    m0, m1, m2, m3 = _load_row(x, stride, mask, col, width)
    x += line
    more = mask & (top + 1 < height)
    b0, b1, b2, b3 = _load_row(x, stride, more, col, width)
    d0, d1 = _load_pair(dy, dy_stride, mask, col, width)
    for i in range(rows):
        # The next row is on its way while this one is computed with.
        x += line
        dy += width * dy_stride
        more = mask & (i + 1 < rows) & (top + i + 1 < height)
        e0, e1 = _load_pair(dy, dy_stride, more, col, width)
        more &= top + i + 2 < height
        n0, n1, n2, n3 = _load_row(x, stride, more, col, width)
        p0, p1 = _pre_gradient(
            d0, d1, t0, t1, t2, t3, m0, m1, m2, m3, b0, b1, b2, b3,
            w0, w1, w2, w3, w4, w5, w6, w7, w8, bias, ACTIVATION,
        )  # fmt: skip
        if ACTIVATION != 'none':
            done = mask & (top + i < height)
            tl.store(dpre, p0, mask=done)
            tl.store(dpre + channels, p1, mask=done & (col + 1 < width))
            dpre += width * channels
        g0, g1, g2 = _accumulate(g0, g1, g2, p0, p1, t0, t1, t2, t3)
        g3, g4, g5 = _accumulate(g3, g4, g5, p0, p1, m0, m1, m2, m3)
        g6, g7, g8 = _accumulate(g6, g7, g8, p0, p1, b0, b1, b2, b3)
        g9 += p0 + p1
        t0, t1, t2, t3 = m0, m1, m2, m3
        m0, m1, m2, m3 = b0, b1, b2, b3
        b0, b1, b2, b3 = n0, n1, n2, n3
        d0, d1 = e0, e1
    return g0, g1, g2, g3, g4, g5, g6, g7, g8, g9


@triton.jit(do_not_specialize=_SIZES)
def _grad_kernel(
    x_ptr, w_ptr, bias_ptr, dy_ptr, dpre_ptr, sums_ptr,
    patches, height, width, rows, blocks, slots, channels, stride, dy_stride,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation; sums of the weight's and the bias's."""
    chunks = tl.cdiv(channels, BLOCK_C)
    slot = tl.program_id(0) // chunks
    c = (tl.program_id(0) % chunks) * BLOCK_C
    c += tl.arange(0, BLOCK_C)[None, :]
    exists = c < channels
    w0, w1, w2 = _load_weight(w_ptr, c, exists, 0, 1)
    w3, w4, w5 = _load_weight(w_ptr, c, exists, 3, 1)
    w6, w7, w8 = _load_weight(w_ptr, c, exists, 6, 1)
    zero = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    bias = zero
    if HAS_BIAS:
        bias += tl.load(bias_ptr + c, mask=exists, other=0.0).to(tl.float32)
    g0, g1, g2, g3, g4 = zero, zero, zero, zero, zero
    g5, g6, g7, g8, g9 = zero, zero, zero, zero, zero
    for block in range(slot, blocks, slots):
        live, top, col, pixel = _locate(
            block * BLOCK_P, patches, height, width, rows, BLOCK_P
        )
        g0, g1, g2, g3, g4, g5, g6, g7, g8, g9 = _walk_down(
            x_ptr + pixel * stride + c,
            dy_ptr + pixel * dy_stride + c,
            dpre_ptr + pixel * channels + c,
            live & exists, top, col, height, width, rows,
            channels, stride, dy_stride,
            w0, w1, w2, w3, w4, w5, w6, w7, w8, bias,
            g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, ACTIVATION,
        )  # fmt: skip
    sums = sums_ptr + slot * 10 * channels + c
    _store_sums(sums, channels, g0, g1, g2, exists)
    _store_sums(sums + 3 * channels, channels, g3, g4, g5, exists)
    _store_sums(sums + 6 * channels, channels, g6, g7, g8, exists)
    total = tl.sum(g9, axis=0, keep_dims=True)
    tl.store(sums + 9 * channels, total, mask=exists)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    flip: bool,
    activation: str,
    before: str = 'none',
) -> None:
    x, stride = pixel_rows(x)
    _, height, width, channels = x.shape
    plan = plan_conv(x.shape)
    launch(
        _conv_kernel,
        (plan.blocks * plan.chunks, 1, 1),
        (x, weight, weight if bias is None else bias, y),
        (plan.patches, height, width, plan.rows, channels, stride),
        (
            bias is not None, flip, activation, before,
            plan.block_p, plan.block_c,
        ),
        plan.warps,
    )  # fmt: skip


def depthwise_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    before: str,
    dtype: torch.dtype,
) -> Tensor:
    """Activation of the input, convolution, bias and activation at once."""
    y = dense_like(x, dtype)
    if x.numel() > 0:
        bias = None if bias is None else bias.contiguous()
        _convolve(x, weight.contiguous(), bias, y, False, activation, before)
    return y


def depthwise_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Launch the backward.

    Returns:
        Gradient of x, and in fp32 those of the weight and then of the bias,
        (9 C + C,).
    """
    dx = dense_like(x, x.dtype)
    if x.numel() == 0:
        return dx, x.new_zeros(10 * x.shape[3], dtype=torch.float32)
    weight = weight.contiguous()
    x, stride = pixel_rows(x)
    dy, dy_stride = pixel_rows(dy)
    _, height, width, channels = x.shape
    plan = gradient_plan(x.shape)
    dpre = dy if activation == 'none' else torch.empty_like(dx)
    # As many blocks for each program, so that all end at one time.
    turns = -(-plan.blocks * plan.chunks // (2 * ENOUGH_PROGRAMS))
    slots = -(-plan.blocks // turns)
    sums = torch.empty(
        slots, 10, channels, dtype=torch.float32, device=x.device
    )
    shift = weight if bias is None else bias.contiguous()
    launch(
        _grad_kernel,
        (slots * plan.chunks, 1, 1),
        (x, weight, shift, dy, dpre, sums),
        (
            plan.patches, height, width, plan.rows, plan.blocks, slots,
            channels, stride, dy_stride,
        ),
        (bias is not None, activation, plan.block_p, plan.block_c),
        plan.warps,
    )  # fmt: skip
    _convolve(dpre, weight, None, dx, True, 'none')
    return dx, add_up_turned(sums)
