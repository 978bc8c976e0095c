"""Which objects of a frame are those of the frames before it."""

import torch
from torch import Tensor

LEAST_IOU = 0.3
# Frames for which an object that is not detected is kept in mind.
MEMORY = 10


class Tracks:
    """Numbers the objects of a video, each the same in all frames."""

    def __init__(self):
        self.boxes, self.moves = torch.zeros(2, 0, 4)
        self.labels, self.numbers, self.unseen = torch.zeros(3, 0).long()
        self.count = 0

    def follow(self, boxes: Tensor, labels: Tensor) -> list[int]:
        """Return the numbers of a frame's objects.

        Args:
            boxes: (N, 4), left, top, right, bottom in pixels.
            labels: (N,), their classes. An object is the one of the same
                class whose last box, moved on as it moved before, overlaps
                most, if the intersection over union is above LEAST_IOU.
        """
        from mmdet.structures.bbox import bbox_overlaps
        from scipy.optimize import linear_sum_assignment

        frames = (self.unseen + 1)[:, None]
        overlap = bbox_overlaps(boxes, self.boxes + frames * self.moves)
        overlap[labels[:, None] != self.labels] = 0
        numbers = torch.full_like(labels, -1)
        moves = torch.zeros_like(boxes)
        kept = self.unseen < MEMORY
        for new, old in zip(
            *linear_sum_assignment(overlap, maximize=True), strict=True
        ):
            if overlap[new, old] > LEAST_IOU:
                numbers[new], kept[old] = self.numbers[old], False
                moves[new] = (boxes[new] - self.boxes[old]) / frames[old]
        fresh = numbers < 0
        numbers[fresh] = self.count + torch.arange(int(fresh.sum()))
        self.count += int(fresh.sum())
        self.boxes = torch.cat([boxes, self.boxes[kept]])
        self.moves = torch.cat([moves, self.moves[kept]])
        self.labels = torch.cat([labels, self.labels[kept]])
        self.numbers = torch.cat([numbers, self.numbers[kept]])
        seen = torch.zeros_like(labels)
        self.unseen = torch.cat([seen, self.unseen[kept] + 1])
        return numbers.tolist()
