"""Throughput of whole classifiers."""

import itertools
from collections.abc import Iterable, Sequence

from . import models, modes
from .rows import Row
from .session import Session


def run(
    session: Session,
    names: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
    dtypes: Sequence[str],
    wanted: Sequence[str],
    phases: Sequence[str],
) -> None:
    """Measures every combination of the lists."""
    for name, size, batch, dtype, phase, mode in itertools.product(
        names, sizes, batches, dtypes, phases, wanted
    ):
        if phase == 'training' and mode not in modes.TRAINING_MODES:
            session.skip(
                f'{name} training', f'mode {mode!r} is for inference alone'
            )
            continue

        def make(
            name=name,
            size=size,
            batch=batch,
            dtype=dtype,
            mode=mode,
            phase=phase,
        ):
            model = models.build_classifier(name).to(session.device)
            return PHASES[phase](
                *(model, mode, modes.DTYPES[dtype], batch),
                *((size, size), session.device),
            )

        session.measure(make, name, mode, phase, batch, str(size), dtype)


PHASES = dict(inference=modes.inference, training=modes.training)


def growth(rows: Iterable[Row]) -> list[str]:
    """Time a pixel at each size over that at the smallest, by model.

    Returns:
        Lines of text; 1.00 everywhere is a cost linear in the pixels.
    """
    series = {}
    for row in rows:
        name = ' '.join((row.model, row.mode, row.phase, row.dtype))
        cost = row.ms / row.batch / int(row.size) ** 2
        series.setdefault((name, row.batch), []).append((int(row.size), cost))
    lines = []
    for (name, batch), costs in series.items():
        costs.sort()
        relative = ', '.join(
            f'{size}: {cost / costs[0][1]:.2f}' for size, cost in costs
        )
        lines.append(
            f'{name} batch {batch}: time a pixel over that at '
            f'{costs[0][0]}: {relative}'
        )
    return lines
