"""Top-1 against FLOPs, a line for each family of models."""

from . import style, tables
from .labels import place_labels

OURS = 'EfficientVMamba'
PEER_COLOURS = (
    style.BLUE,
    style.GREEN,
    style.PURPLE,
    style.ORANGE,
    style.SKY,
    style.GREY,
)
PEER_MARKERS = 'osD^vPX<>h'


def families_of(points):
    """Groups points by family, ours last so that it is drawn on top."""
    families = {}
    for point in points:
        families.setdefault(point.family, []).append(point)
    for family in families.values():
        family.sort(key=lambda point: point.flops)
    ours = families.pop(OURS, None)
    return families | ({OURS: ours} if ours else {})


def draw(output, table):
    """Draws every row of a table with the columns of the paper's Table 2."""
    points = tables.read_points(table)
    families = families_of(points)
    with style.canvas(4.9, output) as figure:
        axis = figure.subplots()
        prepare_axis(axis, points)
        named = []
        for index, (family, members) in enumerate(families.items()):
            ours = family == OURS
            colour = (
                style.VERMILLION
                if ours
                else PEER_COLOURS[index % len(PEER_COLOURS)]
            )
            axis.plot(
                [point.flops for point in members],
                [point.top1 for point in members],
                '*-' if ours else PEER_MARKERS[index % 10] + '-',
                color=colour,
                markersize=14 if ours else 6.5,
                linewidth=2.2 if ours else 1.0,
                markeredgecolor='white',
                markeredgewidth=0.7,
                zorder=3 if ours else 2,
            )
            named += [(point, colour, ours) for point in members]
        style.place_axes(figure)
        write_names(axis, named)


def prepare_axis(axis, points):
    from matplotlib.ticker import FixedLocator, NullLocator

    flops = [point.flops for point in points]
    top1 = [point.top1 for point in points]
    axis.set_xscale('log')
    axis.set_xlim(min(flops) / 1.28, max(flops) * 1.22)
    axis.set_ylim(min(top1) - 0.8, max(top1) + 0.9)
    ticks = [
        value * 10**power
        for power in (-1, 0, 1, 2)
        for value in (1, 1.5, 2, 3, 4, 5, 6, 8)
    ]
    low, high = axis.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.xaxis.set_major_locator(FixedLocator(shown))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f'{tick:g}' for tick in shown])
    axis.grid(color='#E4E4E4', linewidth=0.7)
    axis.set_axisbelow(True)
    axis.set_xlabel('FLOPs (G), logarithmic')
    axis.set_ylabel('ImageNet top-1 (%)')


def write_names(axis, named):
    """Writes the names beside the points, ours first to the best places."""
    named = sorted(named, key=lambda item: not item[2])
    texts = [
        axis.annotate(
            point.model,
            (point.flops, point.top1),
            xytext=(0, 0),
            textcoords='offset points',
            fontsize=9 if ours else 8,
            weight='bold' if ours else 'normal',
            color=style.BLACK if colour != style.VERMILLION else colour,
            zorder=5,
        )
        for point, colour, ours in named
    ]
    place_labels(
        axis,
        texts,
        [(point.flops, point.top1) for point, _, _ in named],
        [150 if ours else 0 for _, _, ours in named],
    )
