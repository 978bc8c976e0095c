"""Boxes, sums and arrows on a sheet measured in inches."""

from dataclasses import dataclass

from . import style

SUM_RADIUS = 0.09
LINE = dict(color=style.BLACK, linewidth=1.0)


@dataclass(frozen=True)
class Box:
    """A rectangle by its left, its middle height, and its size."""

    left: float
    middle: float
    width: float
    height: float

    @property
    def right(self):
        return self.left + self.width

    @property
    def top(self):
        return self.middle + self.height / 2

    @property
    def bottom(self):
        return self.middle - self.height / 2


class Sheet:
    """Draws on an axis whose unit is an inch."""

    def __init__(self, figure, height):
        self.axis = figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, style.WIDTH_INCHES), ylim=(0, height))
        self.axis.axis('off')

    def box(self, left, middle, width, height, lines, colour='white', bold=0):
        """Draws a box with lines of text, the one of number `bold` bold."""
        from matplotlib.patches import FancyBboxPatch

        box = Box(left, middle, width, height)
        pad = 0.04
        self.axis.add_patch(
            FancyBboxPatch(
                (left + pad, box.bottom + pad),
                width - 2 * pad,
                height - 2 * pad,
                boxstyle=f'round,pad={pad}',
                facecolor=colour,
                edgecolor=style.BLACK,
                linewidth=0.8,
            )
        )
        step = 0.155
        first = middle + step * (len(lines) - 1) / 2
        for index, line in enumerate(lines):
            text = self.text(
                left + width / 2,
                first - step * index,
                line,
                size=8,
                bold=index == bold,
            )
            style.shrink(text, width - 2 * pad)
        return box

    def text(self, x, y, text, size=8, bold=False, align='center'):
        return self.axis.text(
            x,
            y,
            text,
            fontsize=size,
            weight='bold' if bold else 'normal',
            ha=align,
            va='center',
            color=style.BLACK,
            zorder=4,
        )

    def sign(self, x, y, symbol):
        """Draws a circle with + or a multiplication sign."""
        from matplotlib.patches import Circle

        self.axis.add_patch(
            Circle(
                (x, y),
                SUM_RADIUS,
                facecolor='white',
                edgecolor=style.BLACK,
                zorder=3,
            )
        )
        self.text(x, y - 0.008, symbol, size=10)

    def line(self, *points):
        xs, ys = zip(*points, strict=True)
        self.axis.plot(xs, ys, solid_capstyle='round', **LINE)

    def arrow(self, *points):
        """Draws a line through the points with a head at its end."""
        self.line(*points[:-1])
        self.axis.annotate(
            '',
            points[-1],
            points[-2],
            arrowprops=dict(
                arrowstyle='-|>',
                shrinkA=0,
                shrinkB=0,
                mutation_scale=8,
                **LINE,
            ),
        )
