"""The four whole-map reading orders of VMamba's SS2D, and their sum.

Shape letters: B batch, H W map, C channels, L = H * W.
Source: VMamba (arXiv:2401.10166), the baseline of EfficientVMamba's Table 5.
"""

import torch
from torch import Tensor


def cross_scan(x: Tensor) -> Tensor:
    """Read a channels-last map in four directions.

    Args:
        x: Map of shape (B, H, W, C).

    Returns:
        Sequences of shape (B, 4, C, L): by rows, by columns, and each of the
        two reversed.

    Raises:
        ValueError: If ``x`` is not a non-empty 4-D map.
    """
    if x.dim() != 4 or x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(
            'x must be a map of shape (B, H, W, C) with H and W of at least '
            f'1, got shape {tuple(x.shape)}'
        )
    by_row = x.permute(0, 3, 1, 2)
    forward = torch.stack([by_row.flatten(2), by_row.mT.flatten(2)], dim=1)
    return torch.cat([forward, forward.flip(-1)], dim=1)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """Sum the four sequences of :func:`cross_scan` cell by cell.

    Args:
        y: Sequences of shape (B, 4, C, L).
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        Map of shape (B, H, W, C), channels innermost.

    Raises:
        ValueError: If the shape of ``y`` does not follow from the map's size.
    """
    if y.dim() != 4 or y.shape[1] != 4 or y.shape[3] != height * width:
        raise ValueError(
            f'y must have shape (B, 4, C, {height * width}) for a map of '
            f'{height}x{width}, got {tuple(y.shape)}'
        )
    forward = y[:, :2] + y[:, 2:].flip(-1)
    by_row = forward[:, 0].unflatten(-1, (height, width))
    by_col = forward[:, 1].unflatten(-1, (width, height)).mT
    return (by_row + by_col).permute(0, 2, 3, 1).contiguous()
