"""Kernel that makes all weights of an inference in one launch.

It finds the tensors by their addresses: a launch has no room for hundreds of
arguments.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

COPY, SCALE, SHIFT = 0, 1, 2
BLOCK = 1024
_WARPS = 4
# Numbers of a job: what it is, whether the result is narrow, elements, those
# of a row, the bits of eps, and the addresses of the result and the sources.
FIELDS = 11

_NARROW = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@triton.jit
def _read(job_ptr, FIELD: tl.constexpr, places, mask):
    source = tl.load(job_ptr + FIELD).to(tl.pointer_type(tl.float32))
    return tl.load(source + places, mask, other=0.0)


@triton.jit
def _write(job_ptr, places, values, mask, DTYPE: tl.constexpr):
    result = tl.load(job_ptr + 5).to(tl.pointer_type(DTYPE))
    tl.store(result + places, values.to(DTYPE), mask=mask)


@triton.jit
def _prepare_kernel(
    jobs_ptr,
    blocks_ptr,
    NARROW: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block_ptr = blocks_ptr + 2 * tl.program_id(0)
    job_ptr = jobs_ptr + tl.load(block_ptr) * FIELDS
    places = tl.load(block_ptr + 1) + tl.arange(0, BLOCK)
    kind = tl.load(job_ptr)
    mask = places < tl.load(job_ptr + 2)
    # A missing bias has the address 0.
    there = mask & (tl.load(job_ptr + 6) != 0)
    values = _read(job_ptr, 6, places, there)
    if kind != 0:
        rows = places // tl.load(job_ptr + 3)
        eps = tl.load(job_ptr + 4).to(tl.int32).to(tl.float32, bitcast=True)
        scale = tl.rsqrt(_read(job_ptr, 10, rows, mask) + eps)
        scale *= _read(job_ptr, 7, rows, mask)
        if kind == 2:
            values -= _read(job_ptr, 9, rows, mask)
        values *= scale
        if kind == 2:
            values += _read(job_ptr, 8, rows, mask)
    if tl.load(job_ptr + 1) != 0:
        _write(job_ptr, places, values, mask, NARROW)
    else:
        _write(job_ptr, places, values, mask, tl.float32)


def prepare(jobs: Tensor, blocks: Tensor, dtype: torch.dtype) -> None:
    """Launch the kernel.

    Args:
        jobs: (jobs, FIELDS), int64.
        blocks: Job and first element of each block, (blocks, 2), int64.
        dtype: Of the narrow results.
    """
    grid = blocks.shape[0], 1, 1
    constants = _NARROW[dtype], FIELDS, BLOCK
    launch(_prepare_kernel, grid, (jobs, blocks), (), constants, _WARPS)
