"""Kernel of the sums of each channel over the tokens of a map.

Shape letters: T tokens, C channels, P parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch_statistics_triton import WARPS, place, sweep
from .launch import launch
from .norm_triton import load_rows
from .sums_triton import add_up
from .tiles import as_rows, pipeline_stages


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
    STAGES: tl.constexpr,
):
    slot, slots, columns = place(C, COLUMNS)
    inside = columns < C
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = slot.to(tl.int64)
    for turn in tl.range(turns, num_stages=STAGES):
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
    plan = sweep(x.shape[0], channels, WARPS)
    stages = pipeline_stages(plan.rows * plan.columns, x)
    parts = torch.empty(
        (plan.slots, channels), dtype=torch.float32, device=x.device
    )
    launch(
        _parts_kernel,
        (plan.slots * plan.chunks, 1, 1),
        (parts, x),
        (x.shape[0], x.stride(0), plan.turns),
        (channels, plan.rows, plan.columns, stages),
        WARPS,
    )
    return add_up(parts)
