import torch
from torch import Tensor

from .box_overlaps import IOU, overlap_ratio
from .kernels import full_precision, torchvision_ops

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Indices of the boxes that are kept, highest score first."""
    boxes, scores = full_precision(boxes), full_precision(scores)
    if offset:
        # Sides of `x2 - x1 + offset` are plain sides once the far corner is
        # moved, for overlaps too.
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision_ops().nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lowers the scores of overlapping boxes instead of dropping them.

    Fills the first rows of `dets`, (N, 5), with boxes and lowered scores,
    and returns their indices, in the order in which they were chosen. As in
    mmcv, the first box stays even when its score is below `min_score`.
    """
    left = torch.arange(len(boxes), device=boxes.device)
    boxes, scores = full_precision(boxes), full_precision(scores).clone()
    kept, kept_scores = [], []
    while len(left):
        best = scores[left].argmax()
        chosen = left[best]
        kept.append(chosen)
        kept_scores.append(scores[chosen])
        left = torch.cat([left[:best], left[best + 1 :]])
        overlap = overlap_ratio(boxes[chosen], boxes[left], IOU, offset)
        scores[left] *= _decay(overlap, iou_threshold, sigma, method)
        left = left[scores[left] >= min_score]
    if not kept:
        return left
    inds = torch.stack(kept)
    found = torch.cat([boxes[inds], torch.stack(kept_scores)[:, None]], 1)
    dets[: len(inds)].copy_(found)
    return inds


def _decay(
    overlap: Tensor, iou_threshold: float, sigma: float, method: int
) -> Tensor:
    if method == GAUSSIAN:
        return torch.exp(-(overlap**2) / sigma)
    weight = 1 - overlap if method == LINEAR else torch.zeros_like(overlap)
    return torch.where(overlap >= iou_threshold, weight, 1.0)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices: a kept box, then those that it suppresses."""
    dets = full_precision(dets)
    boxes = dets[:, :4]
    left = dets[:, 4].sort(descending=True).indices
    groups = []
    while len(left):
        kept, left = left[:1], left[1:]
        overlap = overlap_ratio(boxes[kept], boxes[left], IOU, offset=0)
        suppressed = overlap >= iou_threshold
        groups.append(torch.cat([kept, left[suppressed]]).tolist())
        left = left[~suppressed]
    return groups
