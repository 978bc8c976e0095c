"""The order in which SS2D and ES2D read a map, asked of the operations."""

from dataclasses import dataclass

from . import style

# One colour a parameter set, in their order.
SET_COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE)
# Of a letter, by its height: DejaVu Sans.
DIGIT_WIDTH = 0.64
DIRECTIONS = ('by rows', 'by columns', 'rows, reversed', 'columns, reversed')


@dataclass(frozen=True)
class Reading:
    """How a map is read.

    ``sequences`` holds for each group the (row, column) of its cells in the
    order of the scan, ``sets`` the parameter set of each group. Cells at or
    beyond ``size`` are padding.
    """

    size: int
    sequences: tuple[tuple[tuple[int, int], ...], ...]
    sets: tuple[int, ...]

    @property
    def padded(self):
        return 1 + max(row for group in self.sequences for row, _ in group)


def numbered_map(size):
    """A map (1, size, size, 1) whose cells hold their number, from 1."""
    import torch

    return torch.arange(1.0, size * size + 1).view(1, size, size, 1)


def cells(numbers, width):
    """Turns the numbers of a sequence into (row, column)."""
    indices = numbers.long().tolist()
    return tuple(divmod(index - 1, width) for index in indices)


def read_ss2d(size):
    """The four readings of SS2D, each of the whole map."""
    from evmamba_mm.ops import cross_scan

    scanned = cross_scan(numbered_map(size))[0, :, 0]
    return [
        Reading(size, (cells(numbers, size),), (index,))
        for index, numbers in enumerate(scanned)
    ]


def read_es2d(size, step_size):
    """The groups of ES2D with a step.

    A map that the step does not divide is asked twice: as it is, where
    padding reads as 0, and with its padding numbered, to know which is which.
    """
    from evmamba_mm.ops import atrous_parameter_sets, atrous_scan

    padded = -(-size // step_size) * step_size
    full = numbered_map(padded)
    numbered = atrous_scan(full, step_size)[0, :, 0]
    plain = atrous_scan(full[:, :size, :size], step_size)[0, :, 0]
    sequences = tuple(cells(numbers, padded) for numbers in numbered)
    for group, numbers in zip(sequences, plain, strict=True):
        outside = [max(cell) >= size for cell in group]
        assert [number == 0 for number in numbers.tolist()] == outside
    return Reading(size, sequences, tuple(atrous_parameter_sets(step_size)))


def draw(output, size=8, steps=(1, 2, 3, 4)):
    """Draws SS2D's directions above ES2D's groups of each step."""
    for step_size in steps:
        if not 1 <= step_size <= size:
            raise ValueError(
                f'--steps must be from 1 to --size {size}, got {step_size}'
            )
    columns = max(len(steps), len(DIRECTIONS))
    with style.canvas(5.0, output) as figure:
        axes = figure.subplots(2, columns)
        figure.subplots_adjust(0.01, 0.075, 0.99, 0.9, 0.06, 0.36)
        for axis in axes.flat:
            axis.axis('off')
        for index, reading in enumerate(read_ss2d(size)):
            draw_reading(axes[0, index], reading)
            set_title(axes[0, index], DIRECTIONS[index], columns)
        for axis, step_size in zip(axes[1], steps, strict=False):
            reading = read_es2d(size, step_size)
            draw_reading(axis, reading)
            set_title(axis, title_of(reading, step_size), columns)
        head(figure, axes[0, 0], 'SS2D: every cell four times')
        head(figure, axes[1, 0], 'ES2D: every cell once')
        figure.text(
            0.01,
            0.012,
            'Colour: parameter set.  Number: place of the cell in its '
            'group.  Line: the first group read by rows and the first by '
            'columns.\nHatched: padding.',
            fontsize=8,
            color=style.BLACK,
            va='bottom',
            linespacing=1.3,
        )


def head(figure, axis, text):
    box = axis.get_position()
    figure.text(
        0.01, box.y1 + 0.055, text, fontsize=10.5, weight='bold', va='bottom'
    )


def set_title(axis, text, columns):
    title = axis.set_title(text, fontsize=9)
    style.shrink(title, 0.93 * style.WIDTH_INCHES / columns)


def title_of(reading, step_size):
    groups = len(reading.sequences)
    length = len(reading.sequences[0])
    plural = '' if groups == 1 else 's'
    return f'step {step_size}: {groups} group{plural} of {length}'


def draw_reading(axis, reading):
    """Draws the cells, their places, and one path of each direction."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    cell = cell_points(axis, reading)
    digits = len(str(len(reading.sequences[0])))
    size = min(6.2, 0.9 * cell / (DIGIT_WIDTH * digits))
    for group, parameter_set in zip(
        reading.sequences, reading.sets, strict=True
    ):
        colour = SET_COLOURS[parameter_set]
        for place, (row, column) in enumerate(group, 1):
            outside = max(row, column) >= reading.size
            axis.add_patch(
                Rectangle(
                    (column, row),
                    *(1, 1),
                    facecolor='white' if outside else (colour, 0.3),
                    edgecolor='white' if not outside else (style.GREY, 0.6),
                    hatch='////' if outside else None,
                    linewidth=min(0.8, cell / 20),
                )
            )
            axis.text(
                column + 0.5,
                row + 0.53,
                str(place),
                ha='center',
                va='center',
                fontsize=size,
                color=style.GREY if outside else 'black',
                path_effects=[
                    withStroke(linewidth=size / 4, foreground='white')
                ],
                zorder=4,
            )
    for group, parameter_set in paths(reading):
        draw_path(axis, group, SET_COLOURS[parameter_set], min(7, 0.6 * cell))
    extent = reading.padded
    axis.set(xlim=(-0.1, extent + 0.1), ylim=(extent + 0.1, -0.1))
    axis.set_aspect('equal')


def cell_points(axis, reading):
    """The side of a cell, in points."""
    width, height = axis.get_position().size * axis.figure.get_size_inches()
    return 72 * min(width, height) / (reading.padded + 0.2)


def paths(reading):
    """The first group that goes along rows and the first along columns."""
    found = {}
    for group, parameter_set in zip(
        reading.sequences, reading.sets, strict=True
    ):
        along_row = len(group) < 2 or group[0][0] == group[1][0]
        found.setdefault(along_row, (group, parameter_set))
    return found.values()


def draw_path(axis, group, colour, size):
    columns = [column + 0.5 for _, column in group]
    rows = [row + 0.5 for row, _ in group]
    axis.plot(columns, rows, color=colour, lw=1.0, alpha=0.8, zorder=2)
    axis.plot(columns[0], rows[0], 'o', ms=size, mfc='white', mec=colour)
    if len(group) > 1:
        axis.annotate(
            '',
            (columns[-1], rows[-1]),
            (columns[-2], rows[-2]),
            arrowprops=dict(
                arrowstyle='-|>',
                color=colour,
                lw=1.2,
                mutation_scale=1.4 * size,
            ),
        )
