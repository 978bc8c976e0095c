"""Top-1 of short trainings against the FLOPs and the speed of the models."""

import statistics

from evidence import files

from . import style
from .labels import place_labels

# The model, its ablations, and other architectures.
PEERS = {'resnet18', 'regnety-800mf', 'pvtv2-b0', 'mobilevit-xs'}
PEERS |= {'deit-tiny', 'vim-tiny'}
# The other step sizes lie near the model, as the page says.
UNNAMED = {'step1', 'step3', 'step4'}
TICKS = [x * 10**n for n in range(-2, 6) for x in (1, 2, 5)]


def draw(output, folder):
    """Draws the mean of each row, with the spread of its seeds."""
    rows, values = files.rows(folder), files.top1(folder)
    speeds, device = files.speeds(folder)
    flops = {row: float(each['gflops']) for row, each in rows.items()}
    with style.canvas(4.4, output) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        axes[0].set_ylabel('top-1 (%), 15 epochs of 25,000 images')
        axes[0].set_xlabel('GFLOPs at 128x128')
        axes[1].set_xlabel(f'images/s at 128x128, {device}')
        named = []
        for axis, places in zip(axes, (flops, speeds), strict=True):
            points = {
                row: (places[row], statistics.mean(seeds))
                for row, seeds in values.items()
                if row in places
            }
            show(axis, values, points)
            named.append((axis, points))
        style.place_axes(figure)
        for axis, points in named:
            write_names(axis, rows, points)


def colour_of(row):
    if row == 'tiny':
        return style.VERMILLION
    return style.GREY if row in PEERS else style.BLUE


def show(axis, values, points):
    """A point for each row, with the spread of its seeds."""
    for row, point in points.items():
        seeds = values[row]
        axis.errorbar(
            *point,
            yerr=statistics.stdev(seeds) if len(seeds) > 1 else 0,
            fmt='o',
            color=colour_of(row),
            capsize=3,
            ms=5,
        )
    axis.set_xscale('log')
    ends = [x for x, _ in points.values()]
    # Room for the names.
    least, most = min(ends, default=1) / 1.6, max(ends, default=1) * 1.6
    axis.set_xlim(least, most)
    ticks = [tick for tick in TICKS if least < tick < most]
    axis.set_xticks(ticks, [f'{tick:,g}' for tick in ticks])
    axis.minorticks_off()
    axis.grid(color='#E4E4E4', linewidth=0.7)
    axis.set_axisbelow(True)


def write_names(axis, rows, points):
    """The names, where they cover no point and no other name."""
    named = sorted(points.keys() - UNNAMED, key=lambda row: row != 'tiny')
    texts = [
        axis.annotate(
            rows[row]['name'],
            points[row],
            textcoords='offset points',
            xytext=(0, 0),
            color=colour_of(row),
            fontsize=8,
        )
        for row in named
    ]
    # All points are kept free, also those without a name.
    pixels = [points[row] for row in named]
    pixels += [points[row] for row in sorted(points.keys() & UNNAMED)]
    place_labels(axis, texts, pixels, [0] * len(texts))
