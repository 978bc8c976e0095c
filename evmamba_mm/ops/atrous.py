"""Skip sampling of a map into groups, and its inverse.

Shape letters: B batch, H W map, C channels, p step size, G = p * p groups,
L length of a group = ceil(H / p) * ceil(W / p).

Group ``g = i + p * j`` holds the cells at rows ``i::p`` and columns ``j::p``.
Groups with an even row offset ``i`` are read row by row, those with an odd one
column by column. For p = 2 this is the order of the released weights: (0, 0)
by rows, (1, 0) by columns, (0, 1) by rows, (1, 1) by columns.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def check_step_size(step_size: int) -> None:
    """Refuse a step size that is not a positive integer."""
    is_int = isinstance(step_size, int) and not isinstance(step_size, bool)
    if not is_int or step_size < 1:
        raise ValueError(
            f'step_size must be an integer of at least 1, got {step_size!r}'
        )


def atrous_parameter_sets(step_size: int) -> list[int]:
    """Index of the parameter set of each of the ``step_size**2`` groups.

    There are at most four sets. A group at row offset i and column offset j
    uses set ``i % 2 + 2 * (j % 2)``, so steps 1 and 2 have a set of their own
    for every group, and a larger step shares the sets by the parity of the
    offsets, which is also what decides the reading direction.

    Args:
        step_size: Distance between two cells of a group.

    Returns:
        One index a group, in the order of :func:`atrous_scan`.
    """
    check_step_size(step_size)
    return [
        i % 2 + 2 * (j % 2) for j in range(step_size) for i in range(step_size)
    ]


def atrous_scan(x: Tensor, step_size: int = 2) -> Tensor:
    """Split a channels-last map into sequences of cells ``step_size`` apart.

    A map that ``step_size`` does not divide is padded with zeros on the right
    and at the bottom; the padding is part of the sequences, as in the released
    model.

    Args:
        x: Map of shape (B, H, W, C), any size from 1x1.
        step_size: Distance between two cells of a group; 1 gives the whole
            map as one row-major sequence.

    Returns:
        Sequences of shape (B, G, C, L).

    Raises:
        ValueError: If ``x`` is not a non-empty 4-D map or the step is illegal.
    """
    check_step_size(step_size)
    if x.dim() != 4 or x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(
            'x must be a map of shape (B, H, W, C) with H and W of at least '
            f'1, got shape {tuple(x.shape)}'
        )
    batch, height, width, channels = x.shape
    p = step_size
    rows, cols = math.ceil(height / p), math.ceil(width / p)
    x = F.pad(x, (0, 0, 0, cols * p - width, 0, rows * p - height))
    cells = x.reshape(batch, rows, p, cols, p, channels)
    by_row = cells.permute(0, 4, 2, 5, 1, 3)
    by_offset = [
        (by_row[:, :, i] if i % 2 == 0 else by_row[:, :, i].mT).reshape(
            batch, p, channels, rows * cols
        )
        for i in range(p)
    ]
    return torch.stack(by_offset, dim=2).flatten(1, 2)


def atrous_merge(
    y: Tensor, height: int, width: int, step_size: int = 2
) -> Tensor:
    """Put the sequences of :func:`atrous_scan` back into a map.

    Args:
        y: Sequences of shape (B, G, C, L).
        height: Rows of the map, before padding.
        width: Columns of the map, before padding.
        step_size: The step that the sequences were made with.

    Returns:
        Map of shape (B, H, W, C), channels innermost.

    Raises:
        ValueError: If the shape of ``y`` does not follow from the map's size.
    """
    check_step_size(step_size)
    p = step_size
    rows, cols = math.ceil(height / p), math.ceil(width / p)
    if y.dim() != 4 or y.shape[1] != p * p or y.shape[3] != rows * cols:
        raise ValueError(
            f'y must have shape (B, {p * p}, C, {rows * cols}) for a map of '
            f'{height}x{width} and step_size {p}, got {tuple(y.shape)}'
        )
    batch, channels = y.shape[0], y.shape[2]
    groups = y.reshape(batch, p, p, channels, rows * cols)
    by_row = torch.stack(
        [
            groups[:, :, i].unflatten(-1, (rows, cols))
            if i % 2 == 0
            else groups[:, :, i].unflatten(-1, (cols, rows)).mT
            for i in range(p)
        ],
        dim=2,
    )
    cells = by_row.permute(0, 4, 2, 5, 1, 3)
    padded = cells.reshape(batch, rows * p, cols * p, channels)
    return padded[:, :height, :width].contiguous()
