"""Curves of trainings over their iterations, from what mmengine logged."""

import json
from pathlib import Path

from . import style

COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE)
LINES = ('-', '--', ':')


def scalars_file(run):
    """The newest log of a work dir, or the file itself.

    Raises:
        ValueError: If there is none.
    """
    run = Path(run)
    if run.is_file():
        return run
    files = sorted(run.glob('*/vis_data/scalars.json'))
    if not files:
        raise ValueError(
            f'{str(run)!r} must be a work dir of a training or a scalars.json '
            'of one; there is no */vis_data/scalars.json in it'
        )
    return files[-1]


def read_curve(run, key):
    """Iterations and values of one scalar.

    Raises:
        ValueError: If the run has no such scalar.
    """
    path = scalars_file(run)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    points = [(r['step'], r[key]) for r in records if key in r]
    if not points:
        names = sorted({name for record in records for name in record})
        raise ValueError(
            f'--key {key!r} is in no line of {path}; there are '
            f'{", ".join(names)}'
        )
    return zip(*points, strict=True)


def smoothed(values, window):
    """Mean over `window` values around each point, fewer at both ends.

    As many before a point as behind it: else a falling curve would seem to
    fall late.
    """
    means = []
    for i in range(len(values)):
        half = min(window // 2, i, len(values) - 1 - i)
        around = values[i - half : i + half + 1]
        means.append(sum(around) / len(around))
    return means


def draw(output, runs, key, window):
    """Draws one scalar of several runs into one figure.

    Args:
        output: File to write.
        runs: Pairs of a label and a work dir or file.
        key: Name of the scalar in the log.
        window: Logged values that are averaged, an odd number; the raw ones
            stay, faintly. 1 draws them alone.
    """
    curves = [(label, *read_curve(run, key)) for label, run in runs]
    with style.canvas(4.2, output) as figure:
        axis = figure.subplots()
        for i, (label, steps, values) in enumerate(curves):
            colour = COLOURS[i % len(COLOURS)]
            line = LINES[i // len(COLOURS) % len(LINES)]
            if window > 1:
                axis.plot(steps, values, color=colour, alpha=0.25, lw=0.8)
            axis.plot(
                steps,
                smoothed(values, window),
                line,
                color=colour,
                linewidth=1.6,
                label=label,
            )
        axis.set_xlabel('iteration')
        axis.set_ylabel(key)
        axis.grid(color='#E2E2E2', linewidth=0.8)
        axis.legend(frameon=False)
        style.place_axes(figure)
