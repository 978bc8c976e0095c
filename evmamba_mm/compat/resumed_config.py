"""Keeps a program in a checkpoint from being run.

Breaks: nothing that is seen. `Runner.resume` executes the text under
`checkpoint['meta']['config']` as a Python config, to compare a count of GPUs,
although `torch.load` was kept from running anything. An inferencer that gets
weights and no config executes the text under `cfg`, where mmengine writes the
config of a training.
Fix: drop the first key as the checkpoint is loaded, with a warning; the
FlexibleRunner, which loads by way of its strategy, refuses such a file, and
inferencers ask for the config.
Remove when mmengine parses no config out of a checkpoint.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner

from ..weight_files import file_named
from .after_import import after_import

logger = logging.getLogger('evmamba_mm')
_MARK = '_runs_no_config'


def apply() -> None:
    """Makes Runners and inferencers run no config of a checkpoint."""
    after_import('mmengine.infer.infer', _mend_inferencer)
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
        # Weights of another dtype are found without the file's name.
        with file_named(filename):
            checkpoint = load(
                self, filename, map_location, strict, revise_keys
            )
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


def _mend_inferencer(module: ModuleType) -> None:
    kind = module.BaseInferencer
    if not hasattr(kind.__init__, _MARK):
        kind.__init__ = _asking_for_config(kind.__init__)


def _asking_for_config(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_checked(
        self,
        model: Any = None,
        weights: str | None = None,
        device: str | None = None,
        scope: str | None = None,
        show_progress: bool = True,
    ) -> None:
        if model is None and weights is not None:
            raise ValueError(
                f'model is None: {type(self).__name__} would run the config '
                f'in {weights} as a program; give the file of the config as '
                'model'
            )
        init(self, model, weights, device, scope, show_progress)

    setattr(init_checked, _MARK, True)
    return init_checked
