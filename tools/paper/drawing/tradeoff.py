"""Top-1 of short trainings against the FLOPs of the models."""

import statistics

from evidence import files
from evidence.claims import values_of

from . import style

# The model, its ablations, and other architectures.
PEERS = {'resnet18', 'regnety-800mf', 'pvtv2-b0', 'mobilevit-xs'}
PEERS |= {'deit-tiny', 'vim-tiny'}
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


def draw(output, folder):
    """Draws the mean of each row, with the spread of its seeds."""
    scores = files.scores(folder, 'tin50')
    with style.canvas(4.6, output) as figure:
        axis = figure.add_axes((0.075, 0.11, 0.905, 0.87))
        for row in files.rows(folder).values():
            values = list(values_of(scores, row['row']).values())
            if not values:
                continue
            colour = style.GREY if row['row'] in PEERS else style.BLUE
            if row['row'] == 'tiny':
                colour = style.VERMILLION
            point = float(row['gflops']), statistics.mean(values)
            spread = statistics.stdev(values) if len(values) > 1 else 0
            axis.errorbar(
                *point, yerr=spread, fmt='o', color=colour, capsize=3, ms=5
            )
            place = PLACES.get(row['row'], (8, -3))
            if place:
                axis.annotate(
                    row['name'],
                    point,
                    place,
                    textcoords='offset points',
                    color=colour,
                    fontsize=8,
                    ha='left' if place[0] > 0 else 'right',
                )
        axis.set_xlabel('GFLOPs at 128x128')
        axis.set_ylabel('top-1 (%), 15 epochs of 25,000 images')
        axis.set_xscale('log')
        ticks = (0.15, 0.2, 0.3, 0.4, 0.6)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlim(0.135, 0.72)
        axis.grid(color='#E4E4E4', linewidth=0.7)
        axis.set_axisbelow(True)
