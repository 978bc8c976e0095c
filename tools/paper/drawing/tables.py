"""Reads the tables that the figures are drawn from."""

import csv
from dataclasses import dataclass
from pathlib import Path

NEEDED = ('model', 'flops_g', 'top1')


@dataclass(frozen=True)
class Point:
    """A classifier: its name, FLOPs in G, top-1 in per cent."""

    model: str
    flops: float
    top1: float

    @property
    def family(self):
        """The name without its size: 'Vim' of 'Vim-Ti'."""
        return self.model.rpartition('-')[0] or self.model


def read_points(path):
    """Reads model, flops_g and top1 of every row.

    Raises:
        ValueError: If the file, a column, a row or a number is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f'--table: there is no file {str(path)!r}')
    with open(path, newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        missing = [
            name for name in NEEDED if name not in (reader.fieldnames or ())
        ]
        if missing:
            raise ValueError(
                f'--table {str(path)!r} has no column {", ".join(missing)}; '
                f'it has {", ".join(reader.fieldnames or ()) or "none"}'
            )
        points = [point_of(path, reader.line_num, row) for row in reader]
    if not points:
        raise ValueError(f'--table {str(path)!r} has no rows')
    return points


def point_of(path, line, row):
    try:
        return Point(row['model'], float(row['flops_g']), float(row['top1']))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'--table {str(path)!r}, line {line}: flops_g and top1 must be '
            f'numbers, got {row["flops_g"]!r} and {row["top1"]!r}'
        ) from error
