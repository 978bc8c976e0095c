"""Labels that cover neither each other nor the border of the picture."""

from collections.abc import Iterator, Sequence

from matplotlib.text import Text
from matplotlib.transforms import Bbox
from mmengine.visualization import Visualizer

LEAST_POINTS = 7
# Pixels along the side of a picture for each point of its letters.
PIXELS_FOR_A_POINT = 90
BACKGROUND = {'alpha': 0.75, 'pad': 0.8, 'edgecolor': 'none'}
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class LabelPlaces:
    """Writes labels on the picture of a visualizer, the first ones first.

    Args:
        visualizer: Its `set_image` was called.
        keep_all: Whether a label without a free place is written, too.
    """

    def __init__(self, visualizer: Visualizer, keep_all: bool):
        self.axes = visualizer.ax_save
        self.width, self.height = visualizer.width, visualizer.height
        self.renderer = visualizer.fig_save_canvas.get_renderer()
        side = (self.width * self.height) ** 0.5
        self.points = max(LEAST_POINTS, side / PIXELS_FOR_A_POINT)
        self.keep_all = keep_all
        self.taken = []

    def write(
        self,
        text: str,
        box: tuple[float, float, float, float],
        colour: Sequence[int],
        centred: bool = False,
    ) -> bool:
        """Write a label at a box; return whether it had a free place.

        Args:
            text: The label.
            box: Left, top, right, bottom of what it names, in pixels.
            colour: RGB, up to 255, behind the letters.
            centred: Whether the middle of the box is tried first.
        """
        rgb = [value / 255 for value in colour]
        label = self.axes.text(
            *(0, 0, text),
            size=self.points,
            color=readable_on(rgb),
            bbox=BACKGROUND | {'facecolor': rgb},
        )
        extent = self.extent(label)
        sides = extent.width, extent.height
        for left, top in places(box, *sides, centred):
            place = Bbox.from_bounds(*self.inside(left, top, extent), *sides)
            if not any(place.overlaps(other) for other in self.taken):
                break
        else:
            if not self.keep_all:
                label.remove()
                return False
        label.set_position(
            (
                label.get_position()[0] + place.x0 - extent.x0,
                label.get_position()[1] + place.y0 - extent.y0,
            )
        )
        self.taken.append(place)
        return True

    def inside(
        self, left: float, top: float, extent: Bbox
    ) -> tuple[float, float]:
        """The nearest place at which a label is not cut."""
        return (
            max(0, min(left, self.width - extent.width)),
            max(0, min(top, self.height - extent.height)),
        )

    def extent(self, label: Text) -> Bbox:
        """What a label covers with its background, in pixels of the image."""
        label.get_window_extent(self.renderer)
        label.update_bbox_position_size(self.renderer)
        covered = label.get_bbox_patch().get_window_extent(self.renderer)
        x0, y0, x1, y1 = covered.transformed(
            self.axes.transData.inverted()
        ).extents
        return Bbox.from_extents(
            min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        )


def places(
    box: tuple[float, float, float, float],
    width: float,
    height: float,
    centred: bool,
) -> Iterator[tuple[float, float]]:
    """Left and top of a label above a box, below it, beside it and in it."""
    left, top, right, bottom = box
    if centred:
        yield (left + right - width) / 2, (top + bottom - height) / 2
    yield left, top - height
    yield left, bottom
    yield right, top
    yield left - width, top
    yield left, top


def readable_on(rgb: Sequence[float]) -> tuple[float, float, float]:
    """Black or white, whichever stands out from a colour (ITU-R BT.601)."""
    red, green, blue = rgb
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return BLACK if luma > 0.5 else WHITE
