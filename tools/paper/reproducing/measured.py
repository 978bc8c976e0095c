"""The files in tools/paper/results/measured."""

import csv
from pathlib import Path

COLUMNS = (
    'row',
    'model',
    'metric',
    'paper',
    'measured',
    'tolerance',
    'verdict',
    'images',
    'of_images',
    'weights',
    'config',
    'options',
)
# Measuring a cell again on the same data with weights of the same name and
# the same overrides replaces it.
KEY = ('row', 'metric', 'images', 'weights', 'options')


def read(path):
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def key_of(line):
    return tuple(line[name] for name in KEY)


def write(path, lines):
    """Adds lines to a file of results, in place of older ones of theirs."""
    path = Path(path)
    lines = [{name: str(line[name]) for name in COLUMNS} for line in lines]
    replaced = {key_of(line) for line in lines}
    kept = [line for line in read(path) if key_of(line) not in replaced]
    every = sorted(
        [*kept, *lines],
        key=lambda line: (int(line['row']), int(line['images'])),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(every)
