"""mmdet's visualizer, changed so that the objects stay visible.

mmdet draws masks nearly opaque, over the boxes and names, and varies their
colours at random from picture to picture.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.structures.mask import (
    BitmapMasks,
    PolygonMasks,
    bitmap_to_polygon,
)
from mmdet.visualization import DetLocalVisualizer
from mmdet.visualization.palette import get_palette
from mmengine.structures import InstanceData

from .label_places import LabelPlaces

# Pixels along the side of a picture for each point of its lines.
PIXELS_FOR_A_POINT = 640


class ClearDetVisualizer(DetLocalVisualizer):
    """Thin outlines in the colour of the box, translucent masks, and labels.

    Args:
        name: As in mmdet, like the others here.
        image: The image to draw on.
        vis_backends: What keeps the pictures.
        save_dir: Where they are kept.
        bbox_color: Colour of all boxes instead of the palette.
        text_color: Unused: letters are black or white on the box's colour.
        mask_color: Colour of all masks instead of that of their boxes.
        line_width: In points; None means thin lines, by the picture's size.
        alpha: Opacity of the masks.
    """

    def __init__(
        self,
        name: str = 'visualizer',
        image: np.ndarray | None = None,
        vis_backends: Sequence[dict] | None = None,
        save_dir: str | None = None,
        bbox_color: str | tuple[int, int, int] | None = None,
        text_color: str | tuple[int, int, int] = (200, 200, 200),
        mask_color: str | tuple[int, int, int] | None = None,
        line_width: float | None = None,
        alpha: float = 0.35,
    ):
        super().__init__(
            *(name, image, vis_backends, save_dir, bbox_color, text_color),
            *(mask_color, line_width, alpha),
        )
        self.labels = 'auto'

    def _draw_instances(
        self,
        image: np.ndarray,
        instances: InstanceData,
        classes: Sequence[str] | None,
        palette: list[tuple[int, int, int]] | None,
    ) -> np.ndarray:
        """Draw masks, then outlines, then boxes, then labels.

        Colours are those of `instances.colors` (N, 3), where it is there, and
        else those of the classes.
        """
        colours = self._colours(instances, palette, self.bbox_color)
        masks = as_bool(instances.get('masks'))
        if masks is not None:
            fill = colours
            if self.mask_color is not None:
                fill = self._colours(instances, palette, self.mask_color)
            image = blended(image, masks, fill, self.alpha)
        self.set_image(image)
        width = self.line_width or max(
            1, (self.width * self.height) ** 0.5 / PIXELS_FOR_A_POINT
        )
        boxes = box_array(instances, masks)
        if masks is not None:
            self._draw_outlines(masks, fill, width)
        if len(boxes) and 'bboxes' in instances:
            # A line on the border would lie outside of the picture.
            last = [self.width - 1, self.height - 1] * 2
            self.draw_bboxes(
                boxes.clip(0, last), edge_colors=colours, line_widths=width
            )
        self._draw_labels(instances, boxes, colours, classes)
        return self.get_image()

    @staticmethod
    def _colours(
        instances: InstanceData, palette: object, fixed: object
    ) -> list[tuple[int, int, int]]:
        """Return the colour of each object."""
        if fixed is None and 'colors' in instances:
            return [tuple(colour) for colour in instances.colors.tolist()]
        labels = instances.labels.tolist()
        chosen = get_palette(
            palette if fixed is None else fixed, max(labels, default=0) + 1
        )
        return [tuple(int(v) for v in chosen[label]) for label in labels]

    def _draw_outlines(
        self, masks: np.ndarray, colours: Sequence[tuple], width: float
    ) -> None:
        polygons, edges = [], []
        for mask, colour in zip(masks, colours, strict=True):
            contours, _ = bitmap_to_polygon(mask)
            polygons += contours
            edges += [colour] * len(contours)
        if polygons:
            self.draw_polygons(
                polygons, edge_colors=edges, line_widths=width, alpha=1.0
            )

    def _draw_labels(
        self,
        instances: InstanceData,
        boxes: np.ndarray,
        colours: Sequence[tuple],
        classes: Sequence[str] | None,
    ) -> None:
        """Write class and score of each object, the surest first."""
        one_class = classes is not None and len(classes) == 1
        if self.labels == 'none' or (self.labels == 'auto' and one_class):
            return
        scores = instances.get('scores')
        order = range(len(boxes))
        if scores is not None:
            order = torch.argsort(scores, descending=True).tolist()
        places = LabelPlaces(self, self.labels == 'all')
        for index in order:
            label = int(instances.labels[index])
            text = f'class {label}' if classes is None else classes[label]
            if 'label_names' in instances:
                text = instances.label_names[index]
            if scores is not None:
                text = f'{text} {float(scores[index]):.2f}'
            places.write(text, tuple(boxes[index]), colours[index])


def as_bool(masks: object) -> np.ndarray | None:
    """The masks of instances as an array (N, H, W) of bool."""
    if masks is None:
        return None
    if isinstance(masks, BitmapMasks | PolygonMasks):
        masks = masks.to_ndarray()
    return np.asarray(masks).astype(bool)


def blended(
    image: np.ndarray,
    masks: np.ndarray,
    colours: Sequence[tuple],
    alpha: float,
) -> np.ndarray:
    """Tints the pixels of masks; those of two masks as the later one."""
    tint = image.copy()
    for mask, colour in zip(masks, colours, strict=True):
        tint[mask] = colour
    mixed = (1 - alpha) * image + alpha * tint
    return mixed.round().astype(np.uint8)


def box_array(instances: InstanceData, masks: np.ndarray | None) -> np.ndarray:
    """Boxes (N, 4), round the masks where a model predicts no boxes."""
    boxes = np.zeros((len(instances), 4), np.float32)
    if 'bboxes' in instances:
        boxes = np.asarray(instances.bboxes, np.float32)
    # SOLO has boxes of zeros.
    if masks is None or boxes.any():
        return boxes
    for index, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        if len(rows):
            boxes[index] = (
                *(columns.min(), rows.min()),
                *(columns.max() + 1, rows.max() + 1),
            )
    return boxes
