import torch
from torch import Tensor

from .kernels import full_precision

IOU, IOF = 0, 1


def overlap_ratio(boxes1: Tensor, boxes2: Tensor, mode: int, offset: int):
    """Overlap of boxes whose shapes (..., 4) broadcast.

    The overlap is divided by the area of the union (mode `IOU`) or of the
    first box (mode `IOF`). A side is `high - low + offset` long.
    """
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    shared = (high - low + offset).clamp(min=0).prod(-1)
    area = (boxes1[..., 2:] - boxes1[..., :2] + offset).prod(-1)
    if mode == IOU:
        area2 = (boxes2[..., 2:] - boxes2[..., :2] + offset).prod(-1)
        area = area + area2 - shared
    return shared / area.clamp(min=offset)


def bbox_overlaps(
    bboxes1: Tensor,
    bboxes2: Tensor,
    ious: Tensor,
    mode: int,
    aligned: bool,
    offset: int,
) -> None:
    """Fills `ious`: of each pair of rows if aligned, else of all pairs."""
    boxes1, boxes2 = full_precision(bboxes1), full_precision(bboxes2)
    if not aligned:
        boxes1 = boxes1[:, None]
    ious.copy_(overlap_ratio(boxes1, boxes2, mode, offset))
