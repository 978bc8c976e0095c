"""Kernel of the sums of each channel over the tokens of a map.

Shape letters: T tokens, C channels, P parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch_statistics_triton import place, sweep
from .launch import launch
from .norm_triton import load_rows
from .sums_triton import add_up
from .tiles import as_rows

_WARPS = 8
# So that a thread has 64 bytes on their way, whatever the dtype.
_BYTES = 4


@triton.jit
def _parts_kernel(
    parts_ptr,
    x_ptr,
    tokens,
    x_stride,
    turns,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    slot, slots, columns = place(C, COLUMNS)
    inside = columns < C
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = slot.to(tl.int64)
    for turn in range(turns):
        rows = (start + turn * slots) * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        sums += load_rows(x_ptr, rows, x_stride, columns, mask)
    places = parts_ptr + slot * C + columns
    tl.store(places, tl.sum(sums, axis=0), mask=inside)


def column_sums(x: Tensor) -> Tensor:
    """Launch the sums of tokens (..., C), to (C,) in fp32."""
    channels = x.shape[-1]
    if x.numel() == 0:
        return x.new_zeros(channels, dtype=torch.float32)
    x = as_rows(x, (-1, channels))
    wider = _BYTES // x.element_size()
    plan = sweep(x.shape[0], channels, wider * _WARPS)
    parts = torch.empty(
        (plan.slots, channels), dtype=torch.float32, device=x.device
    )
    launch(
        _parts_kernel,
        (plan.slots * plan.chunks, 1, 1),
        (parts, x),
        (x.shape[0], x.stride(0), plan.turns),
        (channels, plan.rows, plan.columns),
        _WARPS,
    )
    return add_up(parts)
