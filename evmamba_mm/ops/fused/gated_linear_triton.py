"""Kernel of the layer norm, its gate and the linear map behind.

A program holds whole rows of tokens in registers for the norm, and multiplies
them from there.

Shape letters: T tokens, D channels of the tokens, C outputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_linear_triton import dot_precision, is_misread
from .launch import launch
from .norm_triton import load_rows, normalise
from .tiles import as_rows, split_rows

# Few tokens and outputs at a time, so that several programs share a
# multiprocessor.
_ROWS = 32
_WARPS = 4


@triton.jit
def _kernel(
    out_ptr,
    y_ptr,
    gate_ptr,
    weight_ptr,
    bias_ptr,
    linear_ptr,
    tokens,
    y_stride,
    gate_stride,
    steps,
    eps,
    D: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    columns = tl.arange(0, COLUMNS)
    inside = columns < D
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * ROWS
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        gate = load_rows(gate_ptr, rows, gate_stride, columns, mask)
        y = load_rows(y_ptr, rows, y_stride, columns, mask)
        normed, _ = normalise(y, inside, eps, D)
        z = normed * weight[None, :] + bias[None, :]
        z = (z * gate * tl.sigmoid(gate)).to(dtype)
        for start in tl.static_range(0, C, OUTPUTS):
            output = start + tl.arange(0, OUTPUTS)
            known = output < C
            places = linear_ptr + output[None, :] * D + columns[:, None]
            there = known[None, :] & inside[:, None]
            linear = tl.load(places, there, other=0.0).to(dtype)
            out = tl.dot(z, linear, input_precision=PRECISION)
            there = (rows < tokens)[:, None] & known[None, :]
            places = out_ptr + rows[:, None] * C + output[None, :]
            tl.store(places, out.to(dtype), mask=there)


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
    columns = max(16, triton.next_power_of_2(channels))
    at_once = 64 if columns <= 128 else 32
    programs, steps = split_rows(len(y), _ROWS, at_least=_ROWS)
    if programs == 0 or outputs == 0:
        return out
    if is_misread(out):
        rest = (weight, bias, eps, linear.to(dtype).float(), torch.float32)
        return norm_gate_linear_forward(y, gate, *rest).view(shape).to(dtype)
    launch(
        _kernel,
        (programs, 1, 1),
        (
            out, y, gate,
            weight.contiguous(), bias.contiguous(), linear.contiguous(),
        ),
        (len(y), y.stride(0), gate.stride(0), steps, float(eps)),
        (
            channels, outputs, dot_precision(out), _ROWS, columns,
            min(max(16, triton.next_power_of_2(outputs)), at_once),
        ),
        _WARPS,
    )  # fmt: skip
    return out
