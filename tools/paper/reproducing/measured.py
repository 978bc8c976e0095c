"""The files in tools/paper/results/measured."""

import csv
from pathlib import Path

from evmamba_mm.file_locks import alone
from evmamba_mm.whole_files import written_whole

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
WAY_OUT = 'mend it or move it away, or give another folder by --results'


def read(path):
    """The lines of a file; none without a file.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        with path.open(newline='', encoding='utf-8') as file:
            reader = csv.DictReader(file, strict=True)
            heads = tuple(reader.fieldnames or ())
            lines = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is damaged ({error}); {WAY_OUT}') from error
    if heads != COLUMNS:
        raise ValueError(
            f'{path} must have the columns {",".join(COLUMNS)}, it has '
            f'{",".join(heads) or "none"}; {WAY_OUT}'
        )
    for number, line in enumerate(lines, 2):
        whole = None not in line and None not in line.values()
        if not whole or not (line['row'] + line['images']).isdecimal():
            raise ValueError(f'{path} line {number} is damaged; {WAY_OUT}')
    return lines


def check(path):
    """Refuses a damaged file of results, and a folder that takes none.

    Raises:
        ValueError: If what is measured could not be added to the file.
    """
    read(path)
    try:
        with written_whole(Path(path).with_name('.writable')) as part:
            part.touch()
        Path(path).with_name('.writable').unlink()
    except OSError as error:
        raise ValueError(
            f'nothing can be written to {Path(path).parent}: '
            f'{error.strerror}; give another folder by --results'
        ) from error


def key_of(line):
    return tuple(line[name] for name in KEY)


def write(path, lines):
    """Adds lines to a file of results, in place of older ones of theirs."""
    path = Path(path)
    lines = [{name: str(line[name]) for name in COLUMNS} for line in lines]
    replaced = {key_of(line) for line in lines}
    # Two tests may end at the same time.
    with alone(path):
        kept = [line for line in read(path) if key_of(line) not in replaced]
        every = sorted(
            [*kept, *lines],
            key=lambda line: (int(line['row']), int(line['images'])),
        )
        with written_whole(path) as part:
            with part.open('w', newline='', encoding='utf-8') as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
                writer.writeheader()
                writer.writerows(every)
