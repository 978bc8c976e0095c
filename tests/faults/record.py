"""Counts of what was tried and what held, kept as a data file."""

import json
from collections import Counter
from pathlib import Path

import torch

import evmamba_mm


class Counts:
    """How often something was tried and how often it held, by name."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.held: Counter[str] = Counter()

    def add(self, name: str, holds: bool) -> None:
        self.tried[name] += 1
        self.held[name] += holds


def write_record(
    path: str | None, command: str, wanted: str, counts: Counts
) -> int:
    """Print the sums, write them to a file if asked; return an exit status.

    Args:
        path: File to write, or None.
        command: That gives these counts.
        wanted: What counts as held.
        counts: By name.
    """
    tried, held = counts.tried.total(), counts.held.total()
    print(f'{held} of {tried} held: {wanted}')
    if path:
        record = dict(
            command=command,
            wanted=wanted,
            torch=torch.__version__,
            evmamba_mm=evmamba_mm.__version__,
            tried=tried,
            held=held,
            by_name={
                name: dict(tried=count, held=counts.held[name])
                for name, count in sorted(counts.tried.items())
            },
        )
        Path(path).write_text(json.dumps(record, indent=2) + '\n')
    return int(held != tried)
