"""Kernel of the layer norm, its gate and the linear map behind.

A program holds whole rows of tokens in registers for the norm, and multiplies
them from there.

Shape letters: T tokens, D channels of the tokens, C outputs.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_linear_triton import dot_precision, is_misread
from .launch import launch
from .norm_triton import load_rows
from .tiles import as_rows, split_rows

# Few tokens and outputs at a time, so that several programs share a
# multiprocessor. Of 30 ways on an H200 these are the fastest for 96 channels,
# and near it for 192.
_ROWS = 32
_OUTPUTS = 64
_WARPS = 4
# With several turns one's numbers come in while the one before is computed.
# The weights and the tokens then lie in shared memory, which has no room for
# more on small GPUs.
_TOKENS = 256
_WEIGHTS_OF_TURNS = 8192
_BYTES_OF_TURNS = 24576


@triton.jit
def load_part(x_ptr, columns, D: tl.constexpr):
    """Numbers of some channels, in fp32."""
    return tl.load(x_ptr + columns, columns < D, other=0.0).to(tl.float32)


@triton.jit
def centre(y, mean, columns, D: tl.constexpr):
    """Rows of mean 0, zero outside."""
    inside = (columns < D)[None, :]
    return tl.where(inside, y - mean[:, None], 0.0)


@triton.jit
def _gated(centred, rstd, weight, bias, gate):
    normed = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    return normed * (gate * tl.sigmoid(gate))


@triton.jit
def _load_linear(
    linear_ptr, output, columns, C: tl.constexpr, D: tl.constexpr
):
    """Transposed tile of the linear map's weight."""
    places = linear_ptr + output[None, :] * D + columns[:, None]
    mask = (output < C)[None, :] & (columns < D)[:, None]
    return tl.load(places, mask, other=0.0)


@triton.jit
def _kernel(
    out_ptr, y_ptr, gate_ptr, weight_ptr, bias_ptr, linear_ptr,
    tokens, y_stride, gate_stride, steps, eps,
    D: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MORE: tl.constexpr,
    OUTPUTS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    columns = tl.arange(0, COLUMNS)
    weight = load_part(weight_ptr, columns, D)
    bias = load_part(bias_ptr, columns, D)
    if MORE > 0:
        others = COLUMNS + tl.arange(0, MORE)
        weight1 = load_part(weight_ptr, others, D)
        bias1 = load_part(bias_ptr, others, D)
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        live = (rows < tokens)[:, None]
        mask = live & (columns < D)[None, :]
        gate = load_rows(gate_ptr, rows, gate_stride, columns, mask)
        y = load_rows(y_ptr, rows, y_stride, columns, mask)
        total = tl.sum(y, axis=1)
        if MORE > 0:
            mask = live & (others < D)[None, :]
            gate1 = load_rows(gate_ptr, rows, gate_stride, others, mask)
            y1 = load_rows(y_ptr, rows, y_stride, others, mask)
            total += tl.sum(y1, axis=1)
        y = centre(y, total / D, columns, D)
        squares = tl.sum(y * y, axis=1)
        if MORE > 0:
            y1 = centre(y1, total / D, others, D)
            squares += tl.sum(y1 * y1, axis=1)
        rstd = tl.rsqrt(squares / D + eps)
        z = _gated(y, rstd, weight, bias, gate).to(dtype)
        if MORE > 0:
            z1 = _gated(y1, rstd, weight1, bias1, gate1).to(dtype)
        for start in tl.static_range(0, C, OUTPUTS):
            output = start + tl.arange(0, OUTPUTS)
            linear = _load_linear(linear_ptr, output, columns, C, D)
            out = tl.dot(z, linear, input_precision=PRECISION)
            if MORE > 0:
                linear = _load_linear(linear_ptr, output, others, C, D)
                out = tl.dot(z1, linear, out, input_precision=PRECISION)
            places = out_ptr + rows[:, None] * C + output[None, :]
            there = live & (output < C)[None, :]
            tl.store(places, out.to(dtype), mask=there)


@functools.lru_cache(maxsize=1024)
def channel_parts(channels: int) -> tuple[int, int]:
    """A power of two, and the half of it or nothing, that hold the channels.

    The widths of networks are such, and nothing is padded then.
    """
    power = max(16, 1 << (channels - 1).bit_length())
    if power >= 64 and channels <= power * 3 // 4:
        return power // 2, power // 4
    return power, 0


def norm_gate_linear_forward(
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    linear: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the kernel; see :func:`.gated_linear.norm_gate_linear`."""
    outputs, channels = linear.shape
    shape = (*y.shape[:-1], outputs)
    out = torch.empty(shape, dtype=dtype, device=y.device)
    y, gate = as_rows(y, (-1, channels)), as_rows(gate, (-1, channels))
    columns, more = channel_parts(channels)
    wide = columns + more
    weights = wide * triton.next_power_of_2(max(outputs, 16))
    size = wide * _ROWS * (y.element_size() + gate.element_size())
    turns = weights <= _WEIGHTS_OF_TURNS and size <= _BYTES_OF_TURNS
    at_least = _TOKENS if turns else _ROWS
    programs, steps = split_rows(y.shape[0], _ROWS, at_least)
    if programs == 0 or outputs == 0:
        return out
    if is_misread(out):
        rest = (weight, bias, eps, linear.to(dtype), torch.float32)
        return norm_gate_linear_forward(y, gate, *rest).view(shape).to(dtype)
    launch(
        _kernel,
        (programs, 1, 1),
        (
            out, y, gate, weight.contiguous(), bias.contiguous(),
            # In the dtype of the product, for which memory is laid out.
            linear.to(dtype).contiguous(),
        ),
        (y.shape[0], y.stride(0), gate.stride(0), steps, float(eps)),
        (
            channels, outputs, dot_precision(out), _ROWS, columns, more,
            min(max(16, triton.next_power_of_2(outputs)), _OUTPUTS),
        ),
        _WARPS,
    )  # fmt: skip
    return out
