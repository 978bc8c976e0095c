"""Top-1 of short trainings with their seeds, beside the paper's."""

import statistics

from evidence import files

from . import style


def draw(output, folder):
    """Draws every row that was trained, the best one at the top."""
    known, values = files.rows(folder), files.top1(folder)
    rows = sorted(
        (known[row] for row in values),
        key=lambda row: statistics.mean(values[row['row']]),
    )
    height = 0.7 + 0.3 * len(rows)
    with style.canvas(height, output) as figure:
        here, paper = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(0.22, 0.55 / height, 0.985, 0.98, wspace=0.08)
        for place, row in enumerate(rows):
            ours = row['row'] == 'tiny'
            colour = style.VERMILLION if ours else style.BLUE
            seeds = values[row['row']]
            here.plot(
                seeds, [place] * len(seeds), 'o', color=colour, alpha=0.4
            )
            here.plot(statistics.mean(seeds), place, '|', color=colour, ms=16)
            if row['paper']:
                paper.plot(float(row['paper']), place, 'o', color=colour)
        here.set_yticks(range(len(rows)), [row['name'] for row in rows])
        here.set_ylim(-0.6, len(rows) - 0.4)
        here.set_xlabel('top-1 (%), 15 epochs of 25,000 images')
        paper.set_xlabel('top-1 (%), ImageNet, as the paper prints it')
        for axis in (here, paper):
            axis.grid(color='#E4E4E4', linewidth=0.7)
            axis.set_axisbelow(True)
            axis.tick_params(left=False)
