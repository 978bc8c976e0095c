"""Kernel that folds a batch norm into a convolution.

Shape letters: O output channels, K weights of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .tiles import dense_like

_TILE = 1024
_WARPS = 4
_MOST_COLUMNS = 256


@triton.jit
def _load(x_ptr, places, mask):
    return tl.load(x_ptr + places, mask, other=0.0).to(tl.float32)


@triton.jit
def _fold_kernel(
    folded_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    mean_ptr,
    variance_ptr,
    O,  # noqa: E741
    K,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = rows < O
    variance = _load(variance_ptr, rows, exists)
    scale = _load(norm_weight_ptr, rows, exists) * tl.rsqrt(variance + eps)
    places = rows[:, None].to(tl.int64) * K + columns[None, :]
    mask = exists[:, None] & (columns < K)[None, :]
    folded = _load(weight_ptr, places, mask) * scale[:, None]
    folded = folded.to(folded_ptr.dtype.element_ty)
    tl.store(folded_ptr + places, folded, mask=mask)
    if tl.program_id(1) == 0:
        shift = -_load(mean_ptr, rows, exists)
        if bias_ptr is not None:
            shift += _load(bias_ptr, rows, exists)
        shift = shift * scale + _load(norm_bias_ptr, rows, exists)
        shift = shift.to(shift_ptr.dtype.element_ty)
        tl.store(shift_ptr + rows, shift, mask=exists)


def fold(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; see :func:`.fold.fold_batch_norm`."""
    outputs = weight.shape[0]
    folded = dense_like(weight, dtype)
    shift = torch.empty(outputs, dtype=dtype, device=weight.device)
    if outputs == 0:
        return folded, shift
    size = weight.numel() // outputs
    columns = min(triton.next_power_of_2(max(size, 1)), _MOST_COLUMNS)
    rows = max(1, _TILE // columns)
    grid = triton.cdiv(outputs, rows), max(1, triton.cdiv(size, columns)), 1
    tensors = (
        folded,
        shift,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        running_mean.contiguous(),
        running_var.contiguous(),
    )
    numbers = outputs, size, float(eps)
    launch(_fold_kernel, grid, tensors, numbers, (rows, columns), _WARPS)
    return folded, shift
