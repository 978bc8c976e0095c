"""Top-1 of short trainings against the FLOPs and the speed of the models."""

import statistics

from evidence import files
from evidence.claims import values_of

from . import style

# The model, its ablations, and other architectures.
PEERS = {'resnet18', 'regnety-800mf', 'pvtv2-b0', 'mobilevit-xs'}
PEERS |= {'deit-tiny', 'vim-tiny'}
TICKS = [x * 10**n for n in range(-2, 6) for x in (1, 2, 5)]
# Where a name stands beside its point, in points, if not to the right. The
# other step sizes lie on the model, as the page says.
PLACES = {
    'tiny': (10, 3),
    'inres': (-8, -3),
    'early-inres': (-8, -3),
    'step1': None,
    'step3': None,
    'step4': None,
}
FASTER = PLACES | {'inres': (8, -3), 'early-inres': (8, -3)}


def draw(output, folder):
    """Draws the mean of each row, with the spread of its seeds."""
    scores = files.scores(folder, 'tin50')
    values = {
        name: (row['name'], list(values_of(scores, name).values()))
        for name, row in files.rows(folder).items()
    }
    values = {name: found for name, found in values.items() if found[1]}
    flops = {
        name: float(row['gflops']) for name, row in files.rows(folder).items()
    }
    speeds, device = files.speeds(folder)
    with style.canvas(4.2, output) as figure:
        first, second = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(0.07, 0.115, 0.985, 0.98, wspace=0.05)
        show(first, values, flops, PLACES)
        show(second, values, speeds, FASTER)
        first.set_ylabel('top-1 (%), 15 epochs of 25,000 images')
        first.set_xlabel('GFLOPs at 128x128')
        second.set_xlabel(f'images/s at 128x128, {device}')


def show(axis, values, places, names):
    """A point for each row that has a place on the axis."""
    for row, (name, found) in values.items():
        if row not in places:
            continue
        colour = style.GREY if row in PEERS else style.BLUE
        if row == 'tiny':
            colour = style.VERMILLION
        point = places[row], statistics.mean(found)
        spread = statistics.stdev(found) if len(found) > 1 else 0
        axis.errorbar(
            *point, yerr=spread, fmt='o', color=colour, capsize=3, ms=5
        )
        offset = names.get(row, (8, -3))
        if offset:
            axis.annotate(
                name,
                point,
                offset,
                textcoords='offset points',
                color=colour,
                fontsize=8,
                ha='left' if offset[0] > 0 else 'right',
            )
    axis.set_xscale('log')
    ends = [places[row] for row in values if row in places]
    # Room for the names.
    axis.set_xlim(min(ends) / 1.5, max(ends) * 1.8)
    ticks = [x for x in TICKS if min(ends) / 1.5 < x < max(ends) * 1.8]
    axis.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axis.minorticks_off()
    axis.grid(color='#E4E4E4', linewidth=0.7)
    axis.set_axisbelow(True)
