"""Kernel of the backward of the layer norm, its gate and the linear map.

A program takes a few rows of tokens at a time, multiplies their gradient by
the linear map and goes on from the registers. The gradient of the linear map
is left to a product of torch, for which the normed and gated tokens are
written: its sum over all tokens would take the registers that the rows need.

Shape letters: T tokens, D channels of the tokens, C outputs, P programs.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gated_linear_triton import centre, channel_parts, load_part
from .group_linear_triton import dot_precision, is_misread
from .launch import launch
from .norm_triton import load_rows, store_rows
from .sums_triton import add_up
from .tiles import as_rows, empty_gradient, split_rows

# The weight lies in shared memory as a whole, and rows of the outputs beside.
_MOST_WEIGHTS = 32768
_MOST_OUTPUTS = 256
# Of the weight and the tokens that come in while others are computed; with
# what the warps exchange it is all that small GPUs have.
_BYTES_OF_TURNS = 94208
# As many as run at a time: four on each of the 132 processors of a large GPU.
_PROGRAMS = 528
# What a product takes at least. With more, a part of few columns would be
# shared out among the warps in another way than its neighbour.
_ROWS = 16


class _Options(NamedTuple):
    """Warps and stages of a program, and the most programs."""

    warps: int
    stages: int
    programs: int


@triton.jit
def _as_product(x, dtype: tl.constexpr):
    """The same numbers, as a product lies in registers.

    Left alone, the compiler computes everything twice: as the rows are loaded
    and as the product needs it.
    """
    left = tl.zeros((x.shape[0], 16), dtype)
    return tl.dot(left, tl.zeros((16, x.shape[1]), dtype), x)


@triton.jit
def _load_parameters(
    weight_ptr, bias_ptr, linear_ptr, output, columns,
    C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    places = linear_ptr + output[:, None] * D + columns[None, :]
    mask = (output < C)[:, None] & (columns < D)[None, :]
    linear = tl.load(places, mask, other=0.0)
    weight = load_part(weight_ptr, columns, D)
    return weight, load_part(bias_ptr, columns, D), linear


@triton.jit
def _load_tokens(
    y_ptr, gate_ptr, rows, y_stride, gate_stride, columns, mask, dout, linear,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A part of the tokens, of their gates, and of the gradient of both."""
    y = load_rows(y_ptr, rows, y_stride, columns, mask)
    gate = load_rows(gate_ptr, rows, gate_stride, columns, mask)
    dz = tl.dot(dout, linear, input_precision=PRECISION)
    return _as_product(y, dout.dtype), _as_product(gate, dout.dtype), dz


@triton.jit
def _add_parts(x, x1, MORE: tl.constexpr):
    """Numbers of fewer columns, which have the same sum in each row."""
    if MORE > 0:
        x = tl.sum(tl.reshape(x, (x.shape[0], 2, MORE)), axis=1) + x1
    return x


@triton.jit
def _add_pairs(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit
def _normalise(
    y, y1, live, columns, others, eps, D: tl.constexpr, MORE: tl.constexpr
):
    """Both parts with mean 0 and variance 1, and 1 / deviation."""
    mean = tl.sum(_add_parts(y, y1, MORE), axis=1) / D
    y = centre(y, mean, columns, D)
    y1 = centre(y1, mean, others, D)
    squares = tl.sum(_add_parts(y * y, y1 * y1, MORE), axis=1)
    # Without an eps the rows outside would be no numbers.
    rstd = tl.where(live, tl.rsqrt(squares / D + eps), 0.0)
    return y * rstd[:, None], y1 * rstd[:, None], rstd


@triton.jit
def _through_gate(
    z_ptr, dgate_ptr, rows, columns, mask, dz, normed, gate,
    weight, bias, dweight, dbias, D: tl.constexpr,
):  # fmt: skip
    """Write a part of z and of the gate's gradient.

    Returns the gradient of the normed tokens, and the sums so far.
    """
    # As tl.sigmoid does it, with an operation less.
    open_ = 1 / (1 + tl.exp2(gate * -1.4426950408889634))
    silu = gate * open_
    affine = normed * weight[None, :] + bias[None, :]
    store_rows(z_ptr, rows, D, columns, mask, affine * silu)
    dgate = dz * affine * (open_ + silu * (1 - open_))
    store_rows(dgate_ptr, rows, D, columns, mask, dgate)
    dz *= silu
    return dz * weight[None, :], dweight + dz * normed, dbias + dz


@triton.jit
def _means(dy, dy1, y, y1, D: tl.constexpr, MORE: tl.constexpr):
    """Means of each row along the normed tokens, and of all channels."""
    along = _add_parts(dy * y, dy1 * y1, MORE) / D
    level = _add_parts(dy, dy1, MORE) / D
    # One exchange between the warps instead of two.
    return tl.reduce((along, level), 1, _add_pairs)


@triton.jit
def _store_sums(sums_ptr, columns, dweight, dbias, D: tl.constexpr):
    places = sums_ptr + tl.program_id(0) * (2 * D) + columns
    tl.store(places, tl.sum(dweight, axis=0), mask=columns < D)
    tl.store(places + D, tl.sum(dbias, axis=0), mask=columns < D)


@triton.jit
def _kernel(
    dy_ptr, dgate_ptr, z_ptr, sums_ptr, dout_ptr, y_ptr, gate_ptr,
    weight_ptr, bias_ptr, linear_ptr,
    tokens, dout_stride, y_stride, gate_stride, steps, eps,
    D: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MORE: tl.constexpr,
    OUTPUTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    output, columns = tl.arange(0, OUTPUTS), tl.arange(0, COLUMNS)
    others = columns if MORE == 0 else COLUMNS + tl.arange(0, MORE)
    weight, bias, linear = _load_parameters(
        weight_ptr, bias_ptr, linear_ptr, output, columns, C, D
    )
    weight1, bias1, linear1 = _load_parameters(
        weight_ptr, bias_ptr, linear_ptr, output, others, C, D
    )
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dweight1 = tl.zeros((ROWS, others.shape[0]), tl.float32)
    dbias, dbias1 = dweight, dweight1
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in tl.range(0, steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        live = rows < tokens
        there = live[:, None] & (output < C)[None, :]
        dout = dout_ptr + rows[:, None] * dout_stride + output[None, :]
        dout = tl.load(dout, mask=there, other=0.0)
        mask = live[:, None] & (columns < D)[None, :]
        more = live[:, None] & (others < D)[None, :]
        y, gate, dz = _load_tokens(
            y_ptr, gate_ptr, rows, y_stride, gate_stride, columns, mask,
            dout, linear, PRECISION,
        )  # fmt: skip
        y1, gate1, dz1 = y, gate, dz
        if MORE > 0:
            y1, gate1, dz1 = _load_tokens(
                y_ptr, gate_ptr, rows, y_stride, gate_stride, others, more,
                dout, linear1, PRECISION,
            )  # fmt: skip
        y, y1, rstd = _normalise(y, y1, live, columns, others, eps, D, MORE)
        dz, dweight, dbias = _through_gate(
            z_ptr, dgate_ptr, rows, columns, mask, dz, y, gate,
            weight, bias, dweight, dbias, D,
        )  # fmt: skip
        if MORE > 0:
            dz1, dweight1, dbias1 = _through_gate(
                z_ptr, dgate_ptr, rows, others, more, dz1, y1, gate1,
                weight1, bias1, dweight1, dbias1, D,
            )  # fmt: skip
        along, level = _means(dz, dz1, y, y1, D, MORE)
        dy = dz - level[:, None] - y * along[:, None]
        store_rows(dy_ptr, rows, D, columns, mask, dy * rstd[:, None])
        if MORE > 0:
            dy = dz1 - level[:, None] - y1 * along[:, None]
            store_rows(dy_ptr, rows, D, others, more, dy * rstd[:, None])
    _store_sums(sums_ptr, columns, dweight, dbias, D)
    if MORE > 0:
        _store_sums(sums_ptr, others, dweight1, dbias1, D)


@functools.lru_cache(maxsize=1024)
def _outputs(outputs: int) -> int:
    """A power of two that a product takes."""
    return max(16, 1 << (outputs - 1).bit_length())


def serves(outputs: int, channels: int) -> bool:
    """Whether a weight of this shape is one for the kernel."""
    weights = sum(channel_parts(channels)) * _outputs(outputs)
    return outputs <= _MOST_OUTPUTS and weights <= _MOST_WEIGHTS


@functools.lru_cache(maxsize=1024)
def _options(outputs: int, channels: int, token: int, item: int) -> _Options:
    """How the kernel is launched.

    Args:
        outputs: C.
        channels: D.
        token: Bytes of one channel of a token and of its gate.
        item: Bytes of an element of the weight.
    """
    columns, more = channel_parts(channels)
    wide, padded = columns + more, _outputs(outputs)
    turn = _ROWS * (wide * token + padded * item)
    turns = turn + wide * padded * item <= _BYTES_OF_TURNS
    # Tiles of a product have 8 columns: each warp gets as many of the first
    # part as of the other.
    warps = columns // 16
    return _Options(warps, 2 if turns else 1, _PROGRAMS * 4 // max(4, warps))


def norm_gate_linear_backward(
    dout: Tensor,
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    linear: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernel; see :func:`.gated_linear.norm_gate_linear`.

    Args:
        dout: Gradient of the result, (T, C), in the dtype of ``linear``.
        y: As in the forward, like the others.
        gate: Before its activation.
        weight: Of the norm.
        bias: Of the norm.
        eps: Added to the variance.
        linear: In the dtype of the product.

    Returns:
        Gradients of y, of the gate, and of weight and bias, (2, D) in fp32;
        and the normed and gated tokens, (T, D).
    """
    if is_misread(linear):
        *gradients, z = norm_gate_linear_backward(
            dout.float(), y, gate, weight, bias, eps, linear.float()
        )
        return *gradients, z.to(linear.dtype)
    outputs, channels = linear.shape
    dy, dgate = empty_gradient(y, y), empty_gradient(gate, gate)
    y, gate = as_rows(y, (-1, channels)), as_rows(gate, (-1, channels))
    tokens = y.shape[0]
    dout = as_rows(dout, (tokens, outputs))
    z = torch.empty((tokens, channels), dtype=linear.dtype, device=y.device)
    token = y.element_size() + gate.element_size()
    options = _options(outputs, channels, token, linear.element_size())
    strides = dout.stride(0), y.stride(0), gate.stride(0)
    programs, steps = split_rows(
        tokens, _ROWS, at_least=_ROWS, waves=1, programs=options.programs
    )
    sums = y.new_empty((programs, 2, channels), dtype=torch.float32)
    if programs > 0:
        launch(
            _kernel,
            (programs, 1, 1),
            (
                dy, dgate, z, sums, dout, y, gate,
                weight.contiguous(), bias.contiguous(), linear.contiguous(),
            ),
            (tokens, *strides, steps, float(eps)),
            (
                channels, outputs, dot_precision(linear), _ROWS,
                *channel_parts(channels), _outputs(outputs), options.stages,
            ),
            options.warps,
        )  # fmt: skip
    return dy, dgate, add_up(sums), z
