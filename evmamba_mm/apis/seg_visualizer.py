"""mmseg's visualizer, with names that are whole and soon placed.

mmseg's own begin at the middle of a class and end beyond the border, and
placing them takes longer than all else.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer

from .label_places import LabelPlaces

# A smaller part of a class gets no name of its own.
LEAST_SHARE = 0.001


class ClearSegVisualizer(SegLocalVisualizer):
    """Draws the map of the classes, and a name at the largest part of each."""

    labels = 'auto'

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        with_labels: bool = True,
    ) -> np.ndarray:
        drawn = super()._draw_sem_seg(image, sem_seg, classes, palette, False)
        if not with_labels or self.labels == 'none':
            return drawn
        labels = sem_seg.data[0].cpu().numpy()
        places = LabelPlaces(self, self.labels == 'all')
        for size, label, box in largest_parts(labels, len(classes)):
            if self.labels == 'all' or size >= LEAST_SHARE * labels.size:
                places.write(classes[label], box, palette[label], True)
        return self.get_image()


def largest_parts(
    labels: np.ndarray, count: int
) -> list[tuple[int, int, tuple[float, float, float, float]]]:
    """(pixels, label, box) of the largest part of each class, large first.

    The box is the middle of the part: a point within it.
    """
    found = []
    for label in np.unique(labels).tolist():
        if not 0 <= label < count:
            continue
        mask = (labels == label).astype(np.uint8)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        # The centroid of a ring lies outside of it, its deepest point within.
        part = np.pad((parts == largest).astype(np.uint8), 1)
        depth = cv2.distanceTransform(part, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        size = int(stats[largest, cv2.CC_STAT_AREA])
        found.append((size, label, (float(x), float(y), float(x), float(y))))
    return sorted(found, reverse=True)
