"""The paper's tables, each row beside what its config amounts to."""

import csv
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / 'tools' / 'paper' / 'results'
PAPER = RESULTS / 'paper'
COMPUTED = RESULTS / 'computed'
ABLATIONS = RESULTS / 'ablations.csv'
RELIABILITY = RESULTS / 'reliability'
TABLES = tuple(f'table{number}' for number in range(1, 9))
# RetinaNet's rows leave out what is frozen: those of ResNet show it.
TRAINABLE_ONLY = ('table3',)
# What every row with a config must print.
NUMBERS = {
    table: ('params_m',) if table == 'table3' else ('params_m', 'flops_g')
    for table in TABLES
}
# Columns that are ours and not the paper's.
ADDED = ('config', 'note')
COLUMNS = (
    'row',
    'model',
    'config',
    'protocol',
    'params',
    'trainable_params',
    'flops',
    'paper_params_m',
    'paper_flops_g',
    'params_verdict',
    'flops_verdict',
    'why',
)
MATCH, DIFFERS = 'match', 'differs'


@dataclass(frozen=True)
class Row:
    """One row of a table of the paper.

    `printed` holds the paper's cells by column, as strings; `config` the path
    of the config that stands for the row, or '' where there is none.
    """

    table: str
    number: int
    printed: dict
    config: str
    note: str


def read_csv(path):
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def _check_cells(name, number, row):
    """Refuse a cut-off row, and what is no number where one must be."""
    if None in row or None in row.values():
        raise ValueError(f'{name}.csv row {number} has not a cell a column')
    for column in NUMBERS[name] if row['config'] else ():
        try:
            known = Decimal(row[column]).is_finite()
        except (KeyError, InvalidOperation):
            known = False
        if not known:
            raise ValueError(
                f'{name}.csv row {number} must have a number as {column}, '
                f'got {row.get(column)!r}'
            )


def read_table(name):
    rows = read_csv(PAPER / f'{name}.csv')
    for number, row in enumerate(rows, 1):
        _check_cells(name, number, row)
    return [
        Row(
            table=name,
            number=number,
            printed={k: v for k, v in row.items() if k not in ADDED},
            config=row['config'],
            note=row['note'],
        )
        for number, row in enumerate(rows, 1)
    ]


def compare(printed, exact):
    """Compares a printed number with an exact one, at the printed digits.

    Returns the verdict and, where it is known, the reason of a difference.
    """
    shown = Decimal(printed)
    unit = Decimal(1).scaleb(shown.as_tuple().exponent)
    if exact.quantize(unit, ROUND_HALF_UP) == shown:
        return MATCH, ''
    if exact.quantize(unit, ROUND_DOWN) == shown:
        return DIFFERS, f'{exact:.2f} is cut off, not rounded.'
    return DIFFERS, ''


def judge(row, count):
    """Returns the row of tools/paper/results/computed for a row of the paper.

    `count` is the config's row of configs.csv, or None without a config.
    """
    result = dict.fromkeys(COLUMNS, '')
    result.update(
        row=row.number,
        model=row.printed['model'],
        config=row.config,
        paper_params_m=row.printed.get('params_m', ''),
        paper_flops_g=row.printed.get('flops_g', ''),
    )
    if count is None:
        result['why'] = row.note or 'There is no config for it here.'
        return result
    result.update({k: v for k, v in count.items() if k in COLUMNS})
    trainable = row.table in TRAINABLE_ONLY
    counted = {
        'params': ('trainable_params' if trainable else 'params', 6),
        'flops': ('flops', 9),
    }
    reasons = []
    for name, (column, digits) in counted.items():
        printed = result[f'paper_{name}_{"m" if name == "params" else "g"}']
        if printed:
            exact = Decimal(count[column]).scaleb(-digits)
            verdict, reason = compare(printed, exact)
            result[f'{name}_verdict'] = verdict
            reasons.append(reason)
    result['why'] = ' '.join(filter(None, [*reasons, row.note]))
    return result


def unexplained(rows):
    """Returns the computed rows that differ for no stated reason."""
    return [
        row
        for row in rows
        if DIFFERS in (row['params_verdict'], row['flops_verdict'])
        and not row['why']
    ]
