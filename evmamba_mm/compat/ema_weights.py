"""Lets a training start from the average of a model with another head.

Breaks: `load_from` of a checkpoint that has an average of the weights, in a
training with mmpretrain's EMAHook: with "KeyError: 'head.fc.weight'" where a
head was removed from the weights, with torch's list of sizes where the new
head has another number of classes. Without an average both load.
Why: the hook swaps the weights and their average in the checkpoint, key by
key, and copies the average strictly in its shapes. mmengine's hook does so in
a resumed training alone.
Fix: where they do not fit the model, drop the second copy. What a checkpoint
has as its weights is the average, which the hook then copies.
Remove when mmpretrain's hook allows for other heads.
"""

import functools
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from mmengine.hooks import EMAHook

from .after_import import after_import

logger = logging.getLogger('evmamba_mm')
_MARK = '_allows_other_heads'


def apply() -> None:
    """Makes the fix once mmpretrain's hook is imported."""
    after_import('mmpretrain.engine.hooks.ema_hook', _mend)


def _mend(module: ModuleType) -> None:
    hook = module.EMAHook
    if not hasattr(hook.after_load_checkpoint, _MARK):
        hook.after_load_checkpoint = _dropping(hook.after_load_checkpoint)


def _misfit(hook: EMAHook, checkpoint: dict[str, Any]) -> str | None:
    """Name a weight of the average that the model or the file has not so."""
    own = hook.ema_model.state_dict()
    for key, value in checkpoint['ema_state_dict'].items():
        name = key.removeprefix('module.')
        if name == key:
            continue
        if name not in checkpoint['state_dict'] or (
            key in own and own[key].shape != value.shape
        ):
            return name
    return None


def _dropping(load: Callable) -> Callable:
    @functools.wraps(load)
    def after_load_checkpoint(
        self: EMAHook, runner: Any, checkpoint: dict[str, Any]
    ) -> None:
        # A resumed training needs both.
        if 'ema_state_dict' in checkpoint and not runner._resume:
            name = _misfit(self, checkpoint)
            if name is not None:
                del checkpoint['ema_state_dict']
                logger.warning(
                    'the average of the weights in the checkpoint has another '
                    '%s than the model or the checkpoint itself: both start '
                    'from the weights, which are that average',
                    name,
                )
        load(self, runner, checkpoint)

    setattr(after_load_checkpoint, _MARK, True)
    return after_load_checkpoint
