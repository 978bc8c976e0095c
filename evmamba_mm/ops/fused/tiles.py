"""How rows of channels are cut into tiles and programs.

Everything follows from shapes alone, so that a result is the same on every
card and in every run. The sizes are meant for a card of 132 multiprocessors.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

_MULTIPROCESSORS = 132
_ELEMENTS_A_THREAD = 16
# Of shared memory, so that several programs share the 99 KB of a small GPU.
_PIPELINE_BYTES = 48 * 1024
_PIPELINE_STAGES = 3


class Tile(NamedTuple):
    """What one step of a program covers: all channels of some rows."""

    rows: int
    columns: int
    warps: int


@functools.lru_cache(maxsize=1024)
def row_tile(channels: int, elements: int = 2048) -> Tile:
    """Tile of about this many elements.

    Args:
        channels: Length of a row.
        elements: Size wanted; it is more if one row is longer.

    Returns:
        Rows and columns, both powers of two, and the warps to share them.
    """
    columns = max(16, 1 << (channels - 1).bit_length())
    rows = max(1, elements // columns)
    warps = rows * columns // (32 * _ELEMENTS_A_THREAD)
    return Tile(rows, columns, min(max(warps, 1), 16))


@functools.lru_cache(maxsize=1024)
def split_rows(
    count: int,
    tile_rows: int,
    at_least: int,
    groups: int = 1,
    waves: int = 4,
    programs: int | None = None,
) -> tuple[int, int]:
    """Share out the rows of each group among programs.

    Args:
        count: Rows of a group.
        tile_rows: Rows of a step.
        at_least: Rows that a program should have, a power of two; fewer are
            given where the card would stay empty.
        groups: Number of groups, whose rows never share a program.
        waves: Programs for each multiprocessor below which the card counts
            as empty.
        programs: Most programs of a group; a program then has more rows.

    Returns:
        Programs of a group, and steps of a program.
    """
    rows = max(at_least, tile_rows)
    if programs is not None:
        rows = max(rows, -(-count // programs))
    wanted = waves * _MULTIPROCESSORS
    while rows > tile_rows and groups * -(-count // rows) < wanted:
        rows //= 2
    steps = -(-rows // tile_rows)
    return -(-count // (steps * tile_rows)), steps


def pipeline_stages(elements: int, *maps: Tensor | None) -> int:
    """Stages of a loop over tiles whose loads run ahead of it.

    Only what adds up many rows gains by it: what also writes as much as it
    reads has enough programs to wait for each other.

    Args:
        elements: Size of a tile.
        maps: What the loop reads, None for what is not there.

    Returns:
        Stages for ``tl.range``, 1 where tiles would fill the shared memory.
    """
    size = sum(x.element_size() for x in maps if x is not None)
    fits = _PIPELINE_STAGES * elements * size <= _PIPELINE_BYTES
    return _PIPELINE_STAGES if fits else 1


def as_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View with the last dimension dense; a copy only where none exists.

    Args:
        x: Tensor of any layout.
        shape: Shape to give it; the last dimension stays.

    Returns:
        Tensor of this shape with a stride of 1 in the last dimension.
    """
    x = x.reshape(shape)
    return x if x.stride(-1) == 1 else x.contiguous()


def image_rows(
    x: Tensor, shape: tuple[int, int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """A map as images of evenly spaced rows with dense channels.

    Args:
        x: Map of any layout.
        shape: Images, rows of an image and channels.

    Returns:
        The map, copied only if its layout is another, and the elements from
        one image and from one row to the next.
    """
    # A view takes longer than all the rest.
    if x.is_contiguous():
        return x, (shape[1] * shape[2], shape[2])
    x = as_rows(x, shape)
    return x, x.stride()[:2]


def dense_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Dense memory of the shape and on the device of ``x``."""
    return torch.empty_like(
        x, dtype=dtype, memory_format=torch.contiguous_format
    )


def empty_gradient(x: Tensor | None, other: Tensor) -> Tensor:
    """Dense memory for the gradient of an optional tensor.

    Args:
        x: Tensor to differentiate by, or None.
        other: Tensor on the device that is used without ``x``.

    Returns:
        Tensor of the shape and dtype of ``x``, or one without elements: an
        op's results cannot be None.
    """
    if x is None:
        return other.new_empty(0)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
