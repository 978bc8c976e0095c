"""Top-1 of short trainings with their seeds, beside the paper's."""

import statistics

from evidence import files
from evidence.claims import values_of

from . import style


def draw(output, folder):
    """Draws every row that was trained, the best one at the top."""
    scores = files.scores(folder, 'tin50')
    known = files.rows(folder)
    values = {name: list(values_of(scores, name).values()) for name in known}
    rows = sorted(
        (row for row in known.values() if values[row['row']]),
        key=lambda row: statistics.mean(values[row['row']]),
    )
    if not rows:
        raise ValueError(
            f'{folder / "tin50.csv"} has no score of a row in rows.csv'
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
