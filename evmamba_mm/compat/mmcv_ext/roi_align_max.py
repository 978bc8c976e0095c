"""RoIAlign that takes the largest of a bin's points, not their mean.

Every point is a bin of its own in a finer RoIAlign, which torchvision has.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .kernels import torchvision_ops

# Of the input's scale, the points along a bin's side, and the half pixel.
Sampling = tuple[float, int, bool]


def _grids(
    rois: Tensor, size: tuple[int, int], sampling: Sampling
) -> Iterator[tuple[Tensor, int, int]]:
    """Places of the boxes with equally many points a bin, and the points."""
    scale, ratio, aligned = sampling
    extents = (rois[:, 3:5] - rois[:, 1:3]) * scale
    if not aligned:
        extents = extents.clamp(min=1)
    counts = (extents.flip(1) / extents.new_tensor(size)).ceil()
    if ratio > 0:
        counts = torch.full_like(counts, ratio)
    for grid in counts.unique(dim=0):
        # A box without a size has no points, and 0 for an output.
        if grid.min() > 0:
            yield (counts == grid).all(1).nonzero()[:, 0], *grid.int().tolist()


def max_forward(
    features: Tensor, rois: Tensor, size: tuple[int, int], sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (R, C, h, w), and row and column of each bin's largest point."""
    shape = len(rois), features.shape[1], *size
    output, row, col = (features.new_zeros(shape) for _ in range(3))
    scale, _, aligned = sampling
    for places, rows, cols in _grids(rois, size, sampling):
        fine = size[0] * rows, size[1] * cols
        points = torchvision_ops().roi_align(
            features, rois[places], scale, *fine, 1, aligned
        )
        bins = points.unflatten(3, (-1, cols)).unflatten(2, (-1, rows))
        output[places], index = bins.transpose(3, 4).flatten(4).max(4)
        row[places] = (index // cols).to(row)
        col[places] = (index % cols).to(col)
    return output, row, col


def max_backward(
    grad: Tensor,
    rois: Tensor,
    row: Tensor,
    col: Tensor,
    shape: tuple[int, ...],
    sampling: Sampling,
) -> Tensor:
    """Gradient of the features, whose shape is given."""
    total, size = grad.new_zeros(shape), tuple(grad.shape[2:])
    scale, _, aligned = sampling
    for places, rows, cols in _grids(rois, size, sampling):
        index = (row[places] * cols + col[places]).long()[..., None]
        bins = grad.new_zeros(*index.shape[:4], rows * cols)
        bins.scatter_(4, index, grad[places][..., None])
        points = bins.unflatten(4, (rows, cols)).transpose(3, 4)
        points = points.flatten(4).flatten(2, 3).contiguous()
        total += torchvision_ops()._roi_align_backward(
            points, rois[places], scale, *points.shape[2:], *shape, 1, aligned
        )
    return total
