"""Keeps `--resume` from running a program out of the checkpoint.

Breaks: nothing that is seen. `Runner.resume` executes the text under
`checkpoint['meta']['config']` as a Python config, to compare a count of GPUs,
although `torch.load` was kept from running anything.
Fix: drop this key as the checkpoint is loaded, with a warning; the
FlexibleRunner, which loads by way of its strategy, refuses such a file.
mmengine writes its config under another key, `cfg`, and reads that nowhere.
Remove when mmengine parses no config out of a checkpoint.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner

logger = logging.getLogger('evmamba_mm')
_MARK = '_runs_no_config'


def apply() -> None:
    """Makes the Runners run no config of a checkpoint."""
    if not getattr(Runner.load_checkpoint, _MARK, False):
        Runner.load_checkpoint = _dropping_config(Runner.load_checkpoint)
        FlexibleRunner.resume = _refusing_config(FlexibleRunner.resume)


def _has_config(checkpoint: Mapping[str, Any]) -> bool:
    meta = checkpoint.get('meta')
    return isinstance(meta, Mapping) and 'config' in meta


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
        if _has_config(checkpoint):
            meta = checkpoint['meta'].items()
            checkpoint['meta'] = {k: v for k, v in meta if k != 'config'}
            logger.warning(
                "%s has a config under meta['config'], which mmengine would "
                'run as a program: ignored',
                filename,
            )
        return checkpoint

    setattr(load_checkpoint, _MARK, True)
    return load_checkpoint


def _refusing_config(resume: Callable) -> Callable:
    @functools.wraps(resume)
    def resume_checked(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable = 'default',
    ) -> None:
        # A folder is one of DeepSpeed's or ColossalAI's own format.
        if not Path(filename).is_dir() and _has_config(
            CheckpointLoader.load_checkpoint(filename, map_location='cpu')
        ):
            raise ValueError(
                f"{filename} has a config under meta['config'], which the "
                'FlexibleRunner would run as a program; remove it, or resume '
                'with the Runner'
            )
        resume(
            self,
            filename,
            resume_optimizer,
            resume_param_scheduler,
            map_location,
        )

    return resume_checked
