"""Rows of measurements, in a CSV file and as a Markdown table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..csv_files import read_rows, write_rows
from ..file_locks import alone

KEY = ('model', 'mode', 'phase', 'batch', 'size', 'dtype', 'device')


@dataclass(frozen=True)
class Row:
    """One measurement; its fields are the columns of the file.

    `size` is the side of a square image, HEIGHTxWIDTH, or for a scan the
    lengths GxDxLxN. `ms` is the median time of one run of the batch.
    `peak_gib` is empty where the device does not count memory.
    """

    model: str
    mode: str
    phase: str
    batch: int
    size: str
    dtype: str
    images_per_s: float
    ms: float
    peak_gib: float | None
    device: str
    torch: str
    command: str

    def texts(self) -> dict[str, str]:
        """Return the cells of the file, by column."""
        values = asdict(self)
        values['images_per_s'] = f'{self.images_per_s:.5g}'
        values['ms'] = f'{self.ms:.4g}'
        peak = self.peak_gib
        values['peak_gib'] = '' if peak is None else f'{peak:.3f}'
        return {name: str(value) for name, value in values.items()}


COLUMNS = tuple(field.name for field in fields(Row))


def key_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """Return what tells measurements apart."""
    return tuple(row[name] for name in KEY)


def read(path: str | Path) -> list[dict[str, str]]:
    """Reads the rows of a file as dicts of strings.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    rows = read_rows(path, COLUMNS)
    for line, row in enumerate(rows, 2):
        for column in ('images_per_s', 'ms'):
            check_positive(row[column], f'{str(path)!r} line {line}, {column}')
    return rows


def check_positive(cell: str, where: str) -> None:
    """Refuses what is no number, or no finite one above 0."""
    try:
        good = 0 < float(cell) < float('inf')
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f'{where}: {cell!r} must be a number above 0')


def store(path: str | Path, row: Row) -> None:
    """Adds a row to a file, in place of an older one of the same key."""
    path = Path(path)
    new = row.texts()
    with alone(path):
        stored = read(path) if path.is_file() else []
        keys = [key_of(old) for old in stored]
        if key_of(new) in keys:
            stored[keys.index(key_of(new))] = new
        else:
            stored.append(new)
        cells = ([row[name] for name in COLUMNS] for row in stored)
        write_rows(path, COLUMNS, cells)


def best(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The fastest mode of each model, phase, batch, size, dtype and device."""
    fastest: dict[tuple[str, ...], Mapping[str, str]] = {}
    for row in rows:
        case = tuple(row[name] for name in KEY if name != 'mode')
        if case not in fastest or _speed(row) > _speed(fastest[case]):
            fastest[case] = row
    return list(fastest.values())


def _speed(row: Mapping[str, str]) -> float:
    return float(row['images_per_s'])


def markdown(
    rows: Sequence[Mapping[str, str]], unit: str, only_best: bool = False
) -> str:
    """A line for each model, batch, size and dtype, a column for each mode.

    Args:
        rows: What :func:`read` gives.
        unit: Column to print, 'images_per_s' or 'ms'. Peak memory, where it
            is known, is that of the phase that needs most.
        only_best: Whether a column is of a phase, and shows its fastest mode.

    Raises:
        ValueError: If the rows are of several devices.
    """
    devices = sorted({row['device'] for row in rows})
    if len(devices) > 1:
        raise ValueError(
            f'one table shows one device, the rows are of {devices}'
        )
    if only_best:
        rows = best(rows)
    lines, columns = {}, []
    for row in rows:
        name = tuple(row[k] for k in ('model', 'batch', 'size', 'dtype'))
        column = (
            row['phase'] if only_best else f'{row["phase"]}, {row["mode"]}'
        )
        if column not in columns:
            columns.append(column)
        lines.setdefault(name, {})[column] = row
    head = ['model', 'batch', 'size', 'dtype', *columns, 'peak, GiB']
    table = [head, ['---'] * 4 + ['---:'] * (len(columns) + 1)]
    for name, cells in lines.items():
        peaks = [float(c['peak_gib']) for c in cells.values() if c['peak_gib']]
        table.append(
            [
                *name,
                *(shown(cells.get(x), unit, only_best) for x in columns),
                f'{max(peaks):.1f}' if peaks else '',
            ]
        )
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in table)


def shown(
    row: Mapping[str, str] | None, unit: str, with_mode: bool = False
) -> str:
    """Return a cell of the Markdown table."""
    if row is None:
        return ''
    value = float(row[unit])
    text = f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
    return f'{text} ({row["mode"]})' if with_mode else text
