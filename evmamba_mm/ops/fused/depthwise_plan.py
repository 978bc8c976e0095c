"""How a map is cut for the depthwise convolution and its backward.

A patch is two neighbouring columns of a strip of rows.

Shape letters: B batch, H W map, C channels.
"""

import functools
from typing import NamedTuple

_WARPS = 4
# Channels of a thread. With more, the nine weights of each fill the registers;
# the gradient holds ten sums beside them.
_PER_THREAD = 4
_PER_THREAD_OF_GRADIENT = 2
_COLUMNS_OF_GRADIENT = 16
# Less high than that, a map has too few patches for many threads.
_LOW = 14
# Four programs on each of the 132 processors of a large GPU.
ENOUGH_PROGRAMS = 528
_MAX_ROWS = 14


class Plan(NamedTuple):
    """How a map is cut: in patches and strips of rows."""

    block_p: int
    block_c: int
    rows: int
    patches: int
    blocks: int
    chunks: int
    warps: int


def _cut(
    shape: tuple[int, ...], block_c: int, per_thread: int, warps: int
) -> Plan:
    batch, height, width, channels = shape
    block_p = warps * 32 * per_thread // block_c
    chunks = -(-channels // block_c)
    pairs = batch * -(-width // 2)

    def blocks(rows: int) -> int:
        return -(-pairs * -(-height // rows) // block_p)

    # Few rows are read twice, if programs enough are left.
    by_reads = sorted(
        range(_MAX_ROWS, 0, -1),
        key=lambda rows: -(-height // rows) * (rows + 2),
    )
    enough = (
        rows for rows in by_reads if blocks(rows) * chunks >= ENOUGH_PROGRAMS
    )
    rows = next(enough, 1)
    patches = pairs * -(-height // rows)
    return Plan(block_p, block_c, rows, patches, blocks(rows), chunks, warps)


@functools.lru_cache(maxsize=1024)
def plan_conv(shape: tuple[int, ...]) -> Plan:
    """For a convolution of a map (B, H, W, C)."""
    channels = shape[3]
    # The block that wastes least of the channels, and the widest such.
    block_c = min((64, 32, 16), key=lambda c: -(-channels // c) * c)
    return _cut(shape, block_c, _PER_THREAD, _WARPS)


@functools.lru_cache(maxsize=1024)
def gradient_plan(shape: tuple[int, ...]) -> Plan:
    """For the gradients of the weight and before the activation."""
    per_thread, warps = _PER_THREAD_OF_GRADIENT, _WARPS
    if shape[1] < _LOW:
        per_thread, warps = 2 * per_thread, warps // 2
    return _cut(shape, _COLUMNS_OF_GRADIENT, per_thread, warps)
