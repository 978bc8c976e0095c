"""Parts of detectors; those that are like mmdet's import it when built."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import TASK_UTILS

from .canvases import BatchCanvasPad

__all__ = [
    'BatchCanvasPad',
    'cached_anchor_generator',
    'vectorized_max_iou_assigner',
]


@TASK_UTILS.register_module(name='VectorizedMaxIoUAssigner')
def vectorized_max_iou_assigner(
    pos_iou_thr: float,
    neg_iou_thr: float | tuple[float, float],
    min_pos_iou: float = 0.0,
    gt_max_assign_all: bool = True,
    ignore_iof_thr: float = -1,
    ignore_wrt_candidates: bool = True,
    match_low_quality: bool = True,
    gpu_assign_thr: float = -1,
    iou_calculator: Mapping[str, Any] = dict(type='BboxOverlaps2D'),
    perm_repeat_gt_cfg: Mapping[str, Any] | None = None,
) -> Any:
    """Build an assigner with the arguments of mmdet's 'MaxIoUAssigner'."""
    from .max_iou_assigner import VectorizedMaxIoUAssigner

    return VectorizedMaxIoUAssigner(
        *(pos_iou_thr, neg_iou_thr, min_pos_iou, gt_max_assign_all),
        *(ignore_iof_thr, ignore_wrt_candidates, match_low_quality),
        *(gpu_assign_thr, iou_calculator, perm_repeat_gt_cfg),
    )


@TASK_UTILS.register_module(name='CachedAnchorGenerator')
def cached_anchor_generator(
    strides: Sequence[int],
    ratios: Sequence[float],
    scales: Sequence[float] | None = None,
    base_sizes: Sequence[int] | None = None,
    scale_major: bool = True,
    octave_base_scale: int | None = None,
    scales_per_octave: int | None = None,
    centers: Sequence[tuple[float, float]] | None = None,
    center_offset: float = 0.0,
    use_box_type: bool = False,
) -> Any:
    """Build anchors with the arguments of mmdet's 'AnchorGenerator'."""
    from .anchors import CachedAnchorGenerator

    return CachedAnchorGenerator(
        *(strides, ratios, scales, base_sizes, scale_major),
        *(octave_base_scale, scales_per_octave),
        *(centers, center_offset, use_box_type),
    )
