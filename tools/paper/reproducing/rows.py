"""The rows of the paper that a config stands for, by their names."""

from pathlib import Path

from writing import paper

from .metrics import METRICS


def read_table(number):
    """The rows of a table.

    Raises:
        ValueError: If there is no such table, or none with results.
    """
    if number not in METRICS:
        legal = ', '.join(map(str, METRICS))
        raise ValueError(
            f'--table {number}: the tables with results are {legal} '
            '(tools/paper/tables.py counts Params and FLOPs, of table 1 too)'
        )
    return paper.read_table(f'table{number}')


def stem_of(row):
    return Path(row.config).stem


def name_of(row, rows):
    """The model's name, or the config's where rows share the model."""
    model = row.printed['model']
    same = [r for r in rows if r.printed['model'] == model and r.config]
    return model if len(same) == 1 else stem_of(row)


def find_row(number, wanted):
    """The row of a table by its name, its config or its number, from 1.

    Raises:
        ValueError: If the table or the row does not exist, has no config, or
            the name is that of several rows.
    """
    rows = read_table(number)
    legal = [row for row in rows if row.config]
    listed = '\n'.join(
        f'  {row.number:2}  {name_of(row, rows)}' for row in legal
    )
    found = [
        row
        for row in rows
        if wanted in (str(row.number), row.printed['model'])
        or (row.config and wanted in (stem_of(row), row.config))
    ]
    own = [row for row in found if row.config]
    if len(own) == 1:
        return own[0]
    if own:
        what = f'{len(own)} rows of table {number} have this model'
    elif found:
        what = f'there is no config for this row of table {number}'
    else:
        what = f'table {number} has no such row'
    raise ValueError(
        f'--row {wanted!r}: {what}; legal are the numbers and the names of\n'
        f'{listed}'
    )


def lines_of(number):
    """What --list says of a table."""
    rows = read_table(number)
    columns = [metric.column for metric in METRICS[number]]
    yield f'table {number}: {", ".join(columns)}'
    for row in rows:
        if row.config:
            cells = ' '.join(row.printed[column] for column in columns)
            yield f'  {row.number:2}  {name_of(row, rows):52} {cells}'
