"""What the folder of scores holds beside them, read with checks."""

from pathlib import Path

from evmamba_mm.csv_files import read_rows

from .claims import values_of
from .scores import json_lines, read

ROWS = ('row', 'name', 'blocks', 'paper', 'source', 'gflops', 'mparams')
CLAIMS = ('claim', 'better', 'worse', 'source')
FIELDS = (
    *('row', 'seed', 'images', 'outside_quarter', 'area_of_90'),
    *('device', 'torch', 'commit'),
)
# One value for all, and which if it matters.
SAME = dict(phase='inference', size='128', batch=None, dtype=None, device=None)


def scores(folder, task):
    """The scores of a task, none if it was not trained."""
    return read(folder / f'{task}.csv')


def rows(folder):
    """The classifiers by row, with their names, sizes and printed scores."""
    path = folder / 'rows.csv'
    found = read_rows(path, ROWS, ('gflops', 'mparams'))
    return {row['row']: row for row in found}


def top1(folder):
    """Top-1 of each row that was trained, a list over its seeds.

    Raises:
        ValueError: If none was.
    """
    found = scores(folder, 'tin50')
    values = {row: [*values_of(found, row).values()] for row in rows(folder)}
    values = {row: seeds for row, seeds in values.items() if seeds}
    if not values:
        raise ValueError(
            f'{folder / "tin50.csv"} has no score of a row in rows.csv'
        )
    return values


def claims(folder):
    """The claims, each with the difference that the paper prints.

    Raises:
        ValueError: If the paper prints no score of one of the two rows.
    """
    known = rows(folder)
    for claim in read_rows(folder / 'claims.csv', CLAIMS):
        better, worse = (
            known.get(claim[side], {}).get('paper')
            for side in ('better', 'worse')
        )
        if not better or not worse:
            raise ValueError(
                f'{folder / "rows.csv"} has no score of the paper of both '
                f'{claim["better"]!r} and {claim["worse"]!r}'
            )
        yield claim | dict(printed=float(better) - float(worse))


def fields(folder):
    """The measured receptive fields, each with the row's name."""
    known = rows(folder)
    path = folder / 'fields.csv'
    return [
        field
        | dict(name=known.get(field['row'], dict(name=field['row']))['name'])
        for field in read_rows(path, FIELDS, ('outside_quarter',))
    ]


def speeds(folder):
    """Images/s of each classifier in its fastest mode, by row; the device.

    Raises:
        ValueError: If they were not all measured in the same way.
    """
    from evmamba_mm.benchmark import rows as benchmark

    path = folder / 'speed.csv'
    measured = benchmark.read(path)
    if not measured:
        raise ValueError(f'{path} has no rows')
    for key, wanted in SAME.items():
        found = sorted({row[key] for row in measured})
        if len(found) > 1 or wanted not in (None, *found):
            raise ValueError(
                f'{path} must have one {key}{f" ({wanted})" if wanted else ""}'
                f', got {", ".join(found)}'
            )
    best = {
        Path(row['model']).stem: float(row['images_per_s'])
        for row in benchmark.best(measured)
    }
    return best, measured[0]['device']


def last_loss(folder, task, row, seed):
    """The loss of the last line of a training's log that has one."""
    path = folder / 'curves' / f'{task}_{row}_{seed}.json'
    losses = [line['loss'] for line in json_lines(path) if 'loss' in line]
    if not losses:
        raise ValueError(f'{path} has no loss')
    return losses[-1]
