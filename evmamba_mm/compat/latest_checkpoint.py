"""Finds the newest checkpoint that loads.

Breaks: resuming without naming a file, when `last_checkpoint` is empty, was
moved or names a file that a kill cut off; or silently starts at epoch 1.
Fix: search the work folder in place of mmengine's `find_latest_checkpoint`.
The FlexibleRunner goes on from a folder, in the format of DeepSpeed or
ColossalAI, if `last_checkpoint` names one: nothing can be said about it.
Remove when mmengine looks at more than `last_checkpoint`.
"""

import logging
from pathlib import Path

import mmengine.runner
from mmengine.runner import _flexible_runner, runner

from ..resuming import named_by_pointer, newest_checkpoint

logger = logging.getLogger('evmamba_mm')


def apply() -> None:
    """Makes the Runner search, and the FlexibleRunner and its strategies."""
    runner.find_latest_checkpoint = find_latest_checkpoint
    for module in (_flexible_runner, mmengine.runner):
        module.find_latest_checkpoint = find_latest_of_strategy


def find_latest_checkpoint(path: str) -> str | None:
    """Return the newest checkpoint of a work folder that loads, or None.

    Raises:
        BrokenWeightsError: If something was saved there, and nothing loads.
    """
    found, notes = newest_checkpoint(path)
    for note in notes:
        logger.warning(note)
    return None if found is None else str(found)


def find_latest_of_strategy(path: str) -> str | None:
    """Do as `find_latest_checkpoint` does, or return a strategy's folder."""
    named = named_by_pointer(Path(path))
    if named is not None and named.is_dir():
        return str(named)
    return find_latest_checkpoint(path)
