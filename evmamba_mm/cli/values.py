"""Keys of a config that take one kind of value, checked before anything runs.

mmengine reads most of them unchecked, some only at the end of an epoch.
"""

import difflib
import inspect
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner

from ..whole_files import check_writable
from .kinds import type_name

logger = logging.getLogger('evmamba_mm')
SPLITS = ('train', 'val', 'test')
# Where an integer is meant: the least and the largest.
INTEGERS = {
    'train_cfg.max_epochs': (1, math.inf),
    'train_cfg.max_iters': (1, math.inf),
    'train_cfg.val_interval': (1, math.inf),
    'train_cfg.val_begin': (0, math.inf),
    'optim_wrapper.accumulative_counts': (1, math.inf),
    'auto_scale_lr.base_batch_size': (1, math.inf),
    # -1 saves none, and keeps all.
    'default_hooks.checkpoint.interval': (-1, math.inf),
    'default_hooks.checkpoint.max_keep_ckpts': (-1, math.inf),
    'log_processor.window_size': (1, math.inf),
    'randomness.seed': (0, 2**32 - 1),
    **{f'{split}_dataloader.batch_size': (1, math.inf) for split in SPLITS},
    **{f'{split}_dataloader.num_workers': (0, math.inf) for split in SPLITS},
}
# Among them, where 3.0 is 3.
COUNTS = ('train_cfg', 'default_hooks.checkpoint.interval', 'auto_scale_lr')
FINITE = sys.float_info.max
# Where any number is meant.
NUMBERS = {
    'optim_wrapper.optimizer.lr': (0, FINITE),
    'optim_wrapper.optimizer.weight_decay': (0, FINITE),
    'optim_wrapper.clip_grad.max_norm': (0, math.inf),
    'env_cfg.dist_cfg.timeout': (0, math.inf),
}
# Where True or False is meant, and any word would count as true.
SWITCHES = (
    *('resume', 'find_unused_parameters', 'auto_scale_lr.enable'),
    *('train_cfg.by_epoch', 'val_cfg.fp16', 'test_cfg.fp16'),
    *('env_cfg.cudnn_benchmark', 'randomness.deterministic'),
    *(
        f'{split}_dataloader.{key}'
        for split in SPLITS
        for key in ('drop_last', 'persistent_workers', 'pin_memory')
    ),
)
MAPPINGS = (
    *('model', 'data_preprocessor', 'optim_wrapper', 'auto_scale_lr'),
    *('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg'),
    'optim_wrapper.paramwise_cfg.custom_keys',
    *('default_hooks', 'randomness', 'env_cfg', 'visualizer'),
    'model_wrapper_cfg',
    *(f'{split}_dataloader' for split in SPLITS),
    *(f'{split}_dataloader.sampler' for split in SPLITS),
    *(f'{split}_cfg' for split in SPLITS),
)
LISTS = ('custom_hooks', 'param_scheduler', 'val_evaluator', 'test_evaluator')
SYNC_BN = ('torch', 'mmcv', None)
LOG_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')


def check_sections(cfg: Config, needed: Sequence[str]) -> None:
    """Refuse a config that lacks a part, or has something else in its place.

    Args:
        cfg: The config.
        needed: Keys without which the tool cannot run.

    Raises:
        ValueError: It names the key.
    """
    for key in needed:
        if cfg.get(key) is None:
            raise ValueError(f'the config has no {key}')
    for key in MAPPINGS:
        value = value_at(cfg, key)
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f'{key} must be a dict, got {value!r}')
    for key in ('load_from', 'work_dir'):
        value = cfg.get(key)
        if value is not None and not isinstance(value, str | Path):
            raise ValueError(f'{key} must be a path, got {value!r}')
    for split in SPLITS:
        keys = [f'{split}_{part}' for part in ('dataloader', 'cfg')]
        keys += [] if split == 'train' else [f'{split}_evaluator']
        absent = [key for key in keys if cfg.get(key) is None]
        if absent and absent != keys:
            raise ValueError(
                f'{", ".join(keys)} must all be there, or none of them; the '
                f'config has no {" and no ".join(absent)}'
            )
    for key in LISTS:
        value = cfg.get(key)
        # mmengine takes one dict for a list of one, but not of hooks.
        single = isinstance(value, Mapping) and key != 'custom_hooks'
        if value is None or single:
            continue
        if not isinstance(value, list | tuple) or not all(
            isinstance(part, Mapping) for part in value
        ):
            raise ValueError(f'{key} must be a list of dicts, got {value!r}')


def check_values(cfg: Config) -> None:
    """Refuse values that are no number, or out of their range.

    Raises:
        ValueError: It names the key, the value and the legal ones.
    """
    _check_numbers(cfg)
    for key in SWITCHES:
        value = value_at(cfg, key)
        # The libraries take 0 and 1, too.
        if value not in (True, False, None):
            raise ValueError(f'{key} must be True or False, got {value!r}')
    for key in ('data_preprocessor.std', 'model.data_preprocessor.std'):
        value = value_at(cfg, key)
        each = value if isinstance(value, list | tuple) else ()
        if any(isinstance(x, Real) and x <= 0 for x in each):
            raise ValueError(f'{key} must be above 0, got {value!r}')
    _check_processes(cfg)
    level = cfg.get('log_level')
    if isinstance(level, str) and not isinstance(
        logging.getLevelName(level), int
    ):
        raise ValueError(
            f'log_level must be one of {", ".join(LOG_LEVELS)}, got {level!r}'
        )
    check_checkpoint_hook(cfg)
    check_compile(cfg)


def _check_numbers(cfg: Config) -> None:
    for limits, kind, word in (
        (INTEGERS, Integral, 'an integer'),
        (NUMBERS, Real, 'a number'),
    ):
        for key, (least, most) in limits.items():
            value = value_at(cfg, key)
            legal = isinstance(value, kind) and not isinstance(value, bool)
            # mmengine takes 4e4 iterations; torch's loaders take integers.
            if key.startswith(COUNTS) and isinstance(value, float):
                legal = value.is_integer()
            if value is None or (legal and least <= value <= most):
                continue
            limits_of = {math.inf: '', FINITE: ', and finite'}
            limit = limits_of.get(most, f' and at most {most}')
            raise ValueError(
                f'{key} must be {word} of at least {least}{limit}, got '
                f'{value!r}'
            )


def _check_processes(cfg: Config) -> None:
    if cfg.get('sync_bn') not in SYNC_BN:
        raise ValueError(
            f'sync_bn must be one of {SYNC_BN}, got {cfg.sync_bn!r}'
        )
    wrapper = cfg.get('model_wrapper_cfg') or {}
    kind = wrapper.get('type')
    if isinstance(kind, str) and MODEL_WRAPPERS.get(kind) is None:
        near = difflib.get_close_matches(kind, MODEL_WRAPPERS.module_dict, 1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'model_wrapper_cfg.type: there is no {kind!r}{hint}')
    # A single process has no wrapper.
    together = cfg.get('launcher', 'none') != 'none'
    if type_name(wrapper) != 'FlatDistributedDataParallel' or not together:
        return
    others = sorted(set(wrapper) - {'type', 'device_ids', '_scope_'})
    if others or cfg.get('find_unused_parameters'):
        raise ValueError(
            f'{(*others, "find_unused_parameters")[0]} has no effect with '
            "model_wrapper_cfg.type='FlatDistributedDataParallel'; set "
            'model_wrapper_cfg=None, with find_unused_parameters beside it, '
            "or use type='MMDistributedDataParallel'"
        )


def check_best_checkpoints(cfg: Config) -> None:
    """Warn of best checkpoints that no validation can choose."""
    best = value_at(cfg, 'default_hooks.checkpoint.save_best')
    if best is not None and cfg.get('val_cfg') is None:
        logger.warning(
            'default_hooks.checkpoint.save_best is %r, but the config has no '
            'val_cfg: no best checkpoint will be saved',
            best,
        )


def check_schedule(cfg: Config) -> None:
    """Warn of schedules that end before the training, or after it.

    Another length of the training leaves them as they are.
    """
    key = 'max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters'
    by_epoch, length = key == 'max_epochs', cfg.train_cfg.get(key)
    given = cfg.get('param_scheduler') or []
    ends = [
        each.get('end')
        for each in ([given] if isinstance(given, Mapping) else given)
        if each.get('by_epoch', True) == by_epoch
    ]
    if ends and None not in ends and max(ends) != length:
        logger.warning(
            'train_cfg.%s is %s, and param_scheduler ends at %s: is one of '
            'them left from another schedule?',
            *(key, length, max(ends)),
        )


def value_at(cfg: Config, key: str) -> object:
    """Return the value of a dotted key, or None where it leads nowhere."""
    first, *others = key.split('.')
    node = cfg.get(first)
    for part in others:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def check_checkpoint_hook(cfg: Config) -> None:
    """Refuse an argument that would end a training at its first checkpoint.

    The hook hands unknown ones on to `Runner.save_checkpoint`.

    Raises:
        ValueError: It names the key and the argument that was meant.
    """
    hook = value_at(cfg, 'default_hooks.checkpoint')
    if not isinstance(hook, Mapping) or hook.get('type') not in (
        *(None, 'CheckpointHook', 'AtomicCheckpointHook'),
    ):
        return
    known = {'type', 'priority', '_scope_'}
    for function in (CheckpointHook, Runner.save_checkpoint):
        known |= set(inspect.signature(function).parameters)
    for key in sorted(set(hook) - known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(
            f'default_hooks.checkpoint.{key}: CheckpointHook has no argument '
            f'{key!r}{hint}'
        )


def check_out_dir(cfg: Config) -> None:
    """Refuse a place for checkpoints that none can be written to.

    Raises:
        ValueError: It names the key and what the system says.
    """
    key = 'default_hooks.checkpoint.out_dir'
    place = value_at(cfg, key)
    if not isinstance(place, str | Path | None):
        raise ValueError(f'{key} must be a path, got {place!r}')
    # Other places are for mmengine's backends.
    elsewhere = value_at(cfg, 'default_hooks.checkpoint.backend_args')
    if place is None or elsewhere or '://' in str(place):
        return
    try:
        check_writable(Path(place, 'checkpoint.pth'))
    except ValueError as error:
        raise ValueError(f'{key}: {error}') from error


def check_compile(cfg: Config) -> None:
    """Refuse a compiler, or a mode of it, that torch does not have.

    Raises:
        ValueError: It names the key and the legal values.
    """
    words = {}
    # Slow to import, and needed by those alone who name one.
    if isinstance(value_at(cfg, 'compile.backend'), str):
        from torch._dynamo import list_backends

        words['compile.backend'] = list_backends(exclude_tags=())
    if isinstance(value_at(cfg, 'compile.mode'), str):
        from torch._inductor import list_mode_options

        words['compile.mode'] = [*list_mode_options()]
    for key, known in words.items():
        value = value_at(cfg, key)
        if value not in known:
            raise ValueError(
                f'{key} must be one of {", ".join(known)}, got {value!r}'
            )
