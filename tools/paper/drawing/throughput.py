"""Throughput against accuracy, as a figure."""

import csv
import sys
from pathlib import Path

from . import style
from .labels import place_labels

OURS = 'EfficientVMamba'
BEST = 'best'
NEEDED = ('model', 'name', 'top1')
SAME = ('batch', 'size', 'dtype', 'device')


def read_accuracies(path):
    """Reads display name and top-1 of each model.

    Raises:
        ValueError: If the file, a column or a number is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f'--accuracy: there is no file {str(path)!r}')
    with open(path, newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        missing = [c for c in NEEDED if c not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f'--accuracy {str(path)!r} has no column {", ".join(missing)}'
            )
        accuracies = {}
        for row in reader:
            try:
                accuracies[row['model']] = row['name'], float(row['top1'])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f'--accuracy {str(path)!r}, line {reader.line_num}: top1 '
                    f'must be a number, got {row["top1"]!r}'
                ) from error
    return accuracies


def chosen_rows(rows, mode, phase, batch, size):
    """Rows of one mode and phase, and of a batch and size where given.

    Mode 'best' takes the fastest one of each model.
    """
    wanted = {'phase': phase, 'batch': batch, 'size': size}
    if mode != BEST:
        wanted['mode'] = mode
    given = {key: str(v) for key, v in wanted.items() if v is not None}
    chosen = [r for r in rows if all(r[k] == v for k, v in given.items())]
    if mode != BEST:
        return chosen
    from evmamba_mm.benchmark.rows import best

    return best(chosen)


def points_of(rows, accuracies, mode, phase):
    """(name, images/s, top-1, ours) of each model of chosen rows.

    Raises:
        ValueError: If none is left, or the rows are of several sizes,
            batches, dtypes or devices.
    """
    for column in SAME:
        values = sorted({row[column] for row in rows})
        if len(values) > 1:
            raise ValueError(
                f'a figure is of one {column}, the rows of mode {mode!r} and '
                f'phase {phase!r} have {", ".join(values)}; --batch and '
                '--size choose'
            )
    points, seen = [], set()
    for row in rows:
        model = row['model']
        if model in seen:
            raise ValueError(
                f'{model!r} has several rows of mode {mode!r} and phase '
                f'{phase!r}; a figure shows one'
            )
        seen.add(model)
        if model not in accuracies:
            print(f'left out: {model}: no top1 is given', file=sys.stderr)
            continue
        name, top1 = accuracies[model]
        ours = model.startswith(OURS)
        points.append((name, float(row['images_per_s']), top1, ours))
    if not points:
        raise ValueError(
            f'there is no row of mode {mode!r} and phase {phase!r} whose '
            'model has a top1'
        )
    return points


def draw_chosen(args):
    """Draws the rows that the arguments of the command line choose."""
    from evmamba_mm.benchmark import rows

    chosen = chosen_rows(
        rows.read(args.rows), args.mode, args.phase, args.batch, args.size
    )
    accuracies = read_accuracies(args.accuracy)
    draw(args.output, chosen, accuracies, args.mode, args.phase)


def draw(output, rows, accuracies, mode, phase):
    """Draws every model of chosen rows that has a top-1."""
    points = points_of(rows, accuracies, mode, phase)
    row = rows[0]
    speeds = [point[1] for point in points]
    way = 'fastest mode of each' if mode == BEST else mode
    with style.canvas(4.9, output) as figure:
        axis = figure.subplots()
        axis.set_xscale('log')
        axis.set_xlim(min(speeds) / 1.35, max(speeds) * 1.35)
        axis.grid(color='#E4E4E4', linewidth=0.7)
        axis.set_axisbelow(True)
        axis.set_ylabel('ImageNet top-1 (%), as published')
        name = axis.set_xlabel(
            f'images/s, {phase}, {way}, {row["dtype"]}, batch '
            f'{row["batch"]} of {row["size"]}x{row["size"]}, {row["device"]}'
        )
        points.sort(key=lambda point: (not point[3], point[1]))
        for ours in (False, True):
            members = [point for point in points if point[3] is ours]
            axis.plot(
                [point[1] for point in members],
                [point[2] for point in members],
                '*-' if ours else 'o',
                color=style.VERMILLION if ours else style.BLUE,
                markersize=14 if ours else 6.5,
                linewidth=2.2,
                markeredgecolor='white',
                markeredgewidth=0.7,
            )
        tops = [point[2] for point in points]
        axis.set_ylim(min(tops) - 0.9, max(tops) + 0.9)
        set_ticks(axis)
        style.shrink(name, 0.9 * style.WIDTH_INCHES)
        style.place_axes(figure)
        texts = [write_name(axis, point) for point in points]
        place_labels(
            axis,
            texts,
            [point[1:3] for point in points],
            [0] * len(points),
        )


def set_ticks(axis):
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axis.get_xlim()
    steps = [m * 10**e for e in range(-2, 7) for m in (1, 2, 3, 5)]
    shown = [step for step in steps if low <= step <= high]
    axis.xaxis.set_major_locator(FixedLocator(shown))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f'{step:,g}' for step in shown])


def write_name(axis, point):
    name, speed, top1, ours = point
    return axis.annotate(
        name,
        (speed, top1),
        xytext=(0, 0),
        textcoords='offset points',
        fontsize=9 if ours else 8,
        weight='bold' if ours else 'normal',
        color=style.VERMILLION if ours else style.BLACK,
    )
