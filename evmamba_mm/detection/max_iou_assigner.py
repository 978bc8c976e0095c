"""The assignment of anchors to ground truth, in a few operations.

Shape letters: K ground-truth boxes, N anchors or proposals.
"""

import torch
from mmdet.models.task_modules.assigners import AssignResult, MaxIoUAssigner
from torch import Tensor


class VectorizedMaxIoUAssigner(MaxIoUAssigner):
    """mmdet's 'MaxIoUAssigner' without a loop over the ground truth.

    The assignments are equal. The host's asks the GPU for two or three values
    of each ground-truth box; this one asks for none.
    """

    def assign_wrt_overlaps(
        self, overlaps: Tensor, gt_labels: Tensor
    ) -> AssignResult:
        """Assign by overlaps.

        Args:
            overlaps: Of ground truth and boxes (K, N).
            gt_labels: Classes of the ground truth (K,).

        Returns:
            For each box the number of its ground truth from 1 on, 0 for the
            background or -1 to be ignored; its largest overlap; its class or
            -1.
        """
        if 0 in overlaps.shape:
            return super().assign_wrt_overlaps(overlaps, gt_labels)
        max_overlaps, nearest = overlaps.max(dim=0)
        gt_inds = torch.where(self._is_negative(max_overlaps), 0, -1)
        gt_inds = torch.where(
            max_overlaps >= self.pos_iou_thr, nearest + 1, gt_inds
        )
        if self.match_low_quality:
            claimed = self._last_claim(overlaps)
            gt_inds = torch.where(claimed > 0, claimed, gt_inds)
        labels = gt_labels[(gt_inds - 1).clamp_(min=0)].long()
        return AssignResult(
            num_gts=len(overlaps),
            gt_inds=gt_inds,
            max_overlaps=max_overlaps,
            labels=torch.where(gt_inds > 0, labels, -1),
        )

    def _is_negative(self, max_overlaps: Tensor) -> Tensor:
        # A threshold of another type makes no box negative, as in the host.
        low, high = 0, 0
        if isinstance(self.neg_iou_thr, float):
            high = self.neg_iou_thr
        elif isinstance(self.neg_iou_thr, tuple):
            low, high = self.neg_iou_thr
        return (max_overlaps >= low) & (max_overlaps < high)

    def _last_claim(self, overlaps: Tensor) -> Tensor:
        """Find the last ground truth that claims each box, or 0.

        Each claims the box that it overlaps most, or all boxes that it
        overlaps as much.
        """
        most, nearest = overlaps.max(dim=1, keepdim=True)
        if self.gt_max_assign_all:
            claims = overlaps == most
        else:
            columns = torch.arange(overlaps.shape[1], device=overlaps.device)
            claims = columns == nearest
        claims &= most >= self.min_pos_iou
        # int32: half the memory of numbers of all pairs.
        numbers = torch.arange(
            1, len(overlaps) + 1, dtype=torch.int32, device=overlaps.device
        )
        return (claims * numbers[:, None]).amax(dim=0).long()
