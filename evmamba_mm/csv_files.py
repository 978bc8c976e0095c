"""CSV files of measurements: read with checks, written whole, as Markdown."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .whole_files import written_whole


def read_rows(
    path: str | Path, columns: Sequence[str], numbers: Sequence[str] = ()
) -> list[dict]:
    """Read the rows of a file as dicts of strings.

    Args:
        path: File to read.
        columns: The names in its first line.
        numbers: Columns whose cells must be finite numbers.

    Raises:
        ValueError: If the file is missing, no text, or has other columns or a
            line that has more or fewer cells or no number where one belongs.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'there is no file {str(path)!r}')
    try:
        with path.open(newline='', encoding='utf-8') as file:
            reader = csv.DictReader(file)
            there = tuple(reader.fieldnames or ())
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{str(path)!r} is no CSV file: {error}') from error
    if there != tuple(columns):
        raise ValueError(
            f'{str(path)!r} must have the columns {",".join(columns)}, it has '
            f'{",".join(there) or "none"}'
        )
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(
                f'{str(path)!r} line {line} must have {len(columns)} cells'
            )
        for column in numbers:
            if not _is_number(row[column]):
                raise ValueError(
                    f'{str(path)!r} line {line}, {column}: {row[column]!r} '
                    'must be a number'
                )
    return rows


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def write_rows(
    path: str | Path, columns: Sequence[str], rows: Iterable[Sequence]
) -> None:
    """Write a file, so that a reader finds the old one or the new one."""
    with written_whole(path) as part:
        with part.open('w', newline='', encoding='utf-8') as file:
            csv.writer(file, lineterminator='\n').writerows([columns, *rows])


def pivoted(
    rows: Sequence[Mapping[str, str]],
    down: Sequence[str],
    across: Sequence[str],
    value: str,
) -> str:
    """Return a Markdown table of one column of the rows.

    Args:
        rows: What :func:`read_rows` gives.
        down: Columns that tell the lines of the table apart.
        across: Columns that tell its columns apart.
        value: Column to show.
    """
    lines, heads = {}, {}
    for row in rows:
        head = ', '.join(row[name] for name in across)
        heads[head] = None
        line = lines.setdefault(tuple(row[name] for name in down), {})
        line[head] = row[value]
    table = [[*down, *heads]]
    for key, line in lines.items():
        table.append([*key, *(line.get(head, '') for head in heads)])
    first, *others = (f'| {" | ".join(cells)} |' for cells in table)
    return '\n'.join([first, '|---' * len(table[0]) + '|', *others])
