"""Finds the newest checkpoint that loads.

Breaks: resuming without naming a file, when `last_checkpoint` is empty, was
moved or names a file that a kill cut off; or silently starts at epoch 1.
Fix: search the work folder in place of mmengine's `find_latest_checkpoint`.
Remove when mmengine looks at more than `last_checkpoint`.
"""

import logging

from mmengine.runner import runner

from ..resuming import newest_checkpoint

logger = logging.getLogger('evmamba_mm')


def apply() -> None:
    """Makes the Runner search."""
    runner.find_latest_checkpoint = find_latest_checkpoint


def find_latest_checkpoint(path: str) -> str | None:
    """Return the newest checkpoint of a work folder that loads, or None.

    Raises:
        BrokenWeightsError: If something was saved there, and nothing loads.
    """
    found, notes = newest_checkpoint(path)
    for note in notes:
        logger.warning(note)
    return None if found is None else str(found)
