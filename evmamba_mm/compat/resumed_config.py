"""Keeps `--resume` from running a program out of the checkpoint.

Breaks: nothing that is seen. `Runner.resume` executes the text under
`checkpoint['meta']['config']` as a Python config, to compare a count of GPUs,
although `torch.load` was kept from running anything.
Fix: drop this key as the checkpoint is loaded, with a warning. mmengine writes
its config under another key, `cfg`, and reads that nowhere.
Remove when mmengine parses no config out of a checkpoint.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.runner import Runner

logger = logging.getLogger('evmamba_mm')
_MARK = '_drops_config'


def apply() -> None:
    """Makes the Runner drop configs of checkpoints."""
    if not getattr(Runner.load_checkpoint, _MARK, False):
        Runner.load_checkpoint = _dropping_config(Runner.load_checkpoint)


def _dropping_config(load: Callable) -> Callable:
    @functools.wraps(load)
    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: list = [(r'^module.', '')],  # noqa: B006  mmengine's
    ) -> dict[str, Any]:
        checkpoint = load(self, filename, map_location, strict, revise_keys)
        meta = checkpoint.get('meta')
        if isinstance(meta, Mapping) and 'config' in meta:
            checkpoint['meta'] = {
                key: value for key, value in meta.items() if key != 'config'
            }
            logger.warning(
                "%s has a config under meta['config'], which mmengine would "
                'run as a program: ignored',
                filename,
            )
        return checkpoint

    setattr(load_checkpoint, _MARK, True)
    return load_checkpoint
