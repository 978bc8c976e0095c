"""Reports users' mistakes with the config key that caused them.

The toolboxes report most of these too, but late or without the key; they
ignore misspelt keys and overrides of variables silently.
"""

import contextlib
import difflib
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, METRICS, OPTIMIZERS
from mmengine.runner import Runner
from torch import nn

from ..own_files import is_own_class
from .kinds import type_name
from .origins import read_own

logger = logging.getLogger('evmamba_mm')
# Set to anything, it shows tracebacks.
TRACEBACK = 'EVMAMBA_TRACEBACK'
# What mmengine and the tools read of a config besides the arguments of the
# Runner.
OTHER_KEYS = (
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)
# A variable of mmpretrain's own configs, one letter from `model`.
NO_MISSPELLING = ('models',)
# What the toolboxes read of a data set's `metainfo`.
METAINFO = ('classes', 'palette', 'thing_classes', 'stuff_classes')
# What mmengine reads of `paramwise_cfg`.
PARAMWISE = (
    *('bias_decay_mult', 'bias_lr_mult', 'bypass_duplicate', 'custom_keys'),
    *('dcn_offset_lr_mult', 'dwconv_decay_mult', 'flat_decay_mult'),
    'norm_decay_mult',
)
# These read no other keys; the second hands them on.
CONSTRUCTORS = (
    'DefaultOptimWrapperConstructor',
    'GroupedOptimWrapperConstructor',
)
# These fetch their data by themselves.
DOWNLOADING = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')


@contextlib.contextmanager
def errors_in_a_line(
    kinds: tuple[type[Exception], ...] = (ValueError, FileNotFoundError),
) -> Iterator[None]:
    """Exits with a mistake's message.

    Each of several processes says it: torchrun ends all others, said or not,
    when the first one exits.
    """
    try:
        yield
    except kinds as error:
        if read_own(error):
            raise
        leave(error, str(error))


def leave(error: BaseException, said: str) -> NoReturn:
    """Exit with a line in place of an error, which TRACEBACK shows too.

    Raises:
        SystemExit: With the line.
    """
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    sys.exit(f'error: {said}')


def known_keys() -> set[str]:
    """Return the top-level keys that something reads."""
    arguments = inspect.signature(Runner).parameters
    return {*arguments, *OTHER_KEYS} - {'cfg'}


def check_keys(keys: Iterable[str]) -> None:
    """Refuses a top-level key that is a near miss of one that is read.

    Any other unknown key is taken for a variable of the config's own.
    """
    known = known_keys()
    for key in keys:
        if key in known or key in NO_MISSPELLING or key.startswith('_'):
            continue
        meant = misspelling_of(key, known)
        if meant:
            raise ValueError(
                f'the config has a key {key!r}, which nothing reads; did you '
                f'mean {meant!r}? Give a variable of your own a less similar '
                'name'
            )


def misspelling_of(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that `key` is a slip of, or None."""
    for name in known:
        # `val_evaluator_2` is a variable, and no slip of the finger.
        if re.fullmatch(rf'{name}(_\w+|\d+)', key):
            return None
        if sorted(name) == sorted(key):
            return name
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
    return near[0] if near else None


def check_overrides(cfg: Config, overrides: Iterable[str]) -> None:
    """Refuses --cfg-options that change nothing that is read."""
    known = known_keys()
    for key in overrides:
        first = key.partition('.')[0]
        if first in known:
            continue
        if first not in cfg:
            near = difflib.get_close_matches(first, known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(
                f'--cfg-options {key}: the config has no {first!r}, and '
                f'nothing reads it{hint}'
            )
        read = {name: cfg[name] for name in cfg if name in known}
        places = list(places_of(cfg[first], read, ''))
        more = f' and {len(places) - 6} more' if len(places) > 6 else ''
        where = f': {", ".join(places[:6])}{more}' if places else ''
        raise ValueError(
            f'--cfg-options {key}: {first!r} is a variable of the config '
            'file, which takes effect only while the file is read; override '
            f'the keys that use it{where}'
        )


def places_of(value: object, node: object, path: str) -> Iterator[str]:
    """Finds where a value stands, or a string stands at the beginning."""
    if value is None or value == '' or isinstance(value, bool):
        return
    if path and type(node) is type(value):
        begins = isinstance(value, str) and node.startswith(value)
        if begins or node == value:
            yield path
            return
    for key, child in children(node):
        yield from places_of(value, child, f'{path}.{key}' if path else key)


def children(node: object) -> list[tuple[str, object]]:
    """Return the (key, value) pairs of a dict, list or tuple."""
    if isinstance(node, dict):
        return [(str(key), child) for key, child in node.items()]
    if isinstance(node, list | tuple):
        return [(str(index), child) for index, child in enumerate(node)]
    return []


def choose_precision(cfg: Config) -> None:
    """Train in fp32 where the config's mixed precision cannot run."""
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu':
        logger.warning(
            'optim_wrapper.type is AmpOptimWrapper, which runs on an '
            'accelerator only, and there is none: training in fp32 instead'
        )
        wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fp64'):
            wrapper.pop(key, None)


def check_optimizer(cfg: Config) -> None:
    """Refuse an optimiser that no registry has, once the Runner is built.

    Raises:
        ValueError: It names the key.
    """
    name = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get(
        'type'
    )
    with OPTIMIZERS.switch_scope_and_registry(None) as registry:
        if isinstance(name, str) and registry.get(name) is None:
            near = difflib.get_close_matches(name, OPTIMIZERS.module_dict, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(
                f'optim_wrapper.optimizer.type: there is no {name!r}{hint}'
            )


def check_paramwise(cfg: Config, model: nn.Module | Mapping) -> None:
    """Refuse a misspelt setting of groups of parameters.

    A key that no parameter has is told: it may be meant for another model.

    Raises:
        ValueError: It names the setting.
    """
    given = cfg.optim_wrapper.get('paramwise_cfg') or {}
    for key in ('constructor', 'base_constructor'):
        if cfg.optim_wrapper.get(key, CONSTRUCTORS[0]) not in CONSTRUCTORS:
            return
    check_slips('optim_wrapper.paramwise_cfg', given, PARAMWISE)
    # The FlexibleRunner builds its model later.
    named = getattr(model, 'named_parameters', tuple)
    names = [name for name, _ in named()]
    for key in given.get('custom_keys') or ():
        if names and not any(key in name for name in names):
            logger.warning(
                'optim_wrapper.paramwise_cfg.custom_keys has %r, and no '
                'parameter of the model has it in its name',
                key,
            )


def check_outputs(cfg: Config) -> None:
    """Refuse outputs of the backbone that the neck reads none of.

    Their norms would get no gradient, on which distributed training stops at
    its second iteration. A single process is told.

    Raises:
        ValueError: If several processes train.
    """
    model = cfg.get('model') or {}
    backbone, neck = model.get('backbone') or {}, model.get('neck') or {}
    if type_name(backbone) != 'EfficientVMamba' or not isinstance(
        neck, Mapping
    ):
        return
    start, frozen = neck.get('start_level'), backbone.get('frozen_stages')
    # Others are refused where they are read.
    if not isinstance(start, int) or start <= max(
        0, frozen if isinstance(frozen, int) else 0
    ):
        return
    message = (
        f'model.neck.start_level is {start}: the norms of the outputs below '
        'it get no gradient. Leave these stages out of '
        'model.backbone.out_indices and model.neck.in_channels, and set '
        'model.neck.start_level=0'
    )
    # mmengine reads the one in a wrapper's config, where there is one.
    wrapper = cfg.get('model_wrapper_cfg') or cfg
    if cfg.get('launcher', 'none') == 'none' or wrapper.get(
        'find_unused_parameters'
    ):
        logger.warning(message)
        return
    raise ValueError(message)


def datasets_of(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """Yields (key, dataset) of a split, also of datasets inside others."""
    loader = cfg.get(f'{split}_dataloader')
    if loader is None or cfg.get(f'{split}_cfg') is None:
        return
    waiting = [(f'{split}_dataloader.dataset', loader.get('dataset'))]
    while waiting:
        key, dataset = waiting.pop(0)
        if not isinstance(dataset, dict):
            continue
        yield key, dataset
        waiting.append((f'{key}.dataset', dataset.get('dataset')))
        inner = dataset.get('datasets')
        waiting += [(f'{key}.datasets.{i}', d) for i, d in children(inner)]


def prefixes_of(dataset: Mapping) -> dict[str, str]:
    """Returns the folders in `data_prefix` by the end of their key."""
    prefix = dataset.get('data_prefix')
    if isinstance(prefix, dict):
        return {f'data_prefix.{k}': v for k, v in prefix.items() if v}
    return {'data_prefix': prefix} if prefix else {}


def is_local(part: Mapping) -> bool:
    """Whether the files that a part names are on this machine."""
    settings = part.get('backend_args') or {}
    return settings.get('backend', 'local') in ('local', 'LocalBackend')


def local_paths(dataset: Mapping) -> Iterator[tuple[str, str]]:
    """Yields (end of the key, path) of what a dataset needs from the start.

    Maps of labels are left out: a test without labels has none.
    """
    if not is_local(dataset) or type_name(dataset) in DOWNLOADING:
        return
    root = dataset.get('data_root') or ''
    ends = {
        key: value
        for key, value in prefixes_of(dataset).items()
        if key == 'data_prefix' or key.startswith('data_prefix.img')
    }
    if dataset.get('ann_file'):
        ends['ann_file'] = dataset['ann_file']
    for key, value in ends.items():
        if isinstance(value, str | Path):
            path = os.path.join(root, value)
            relies_on_root = root and path != str(value)
            if relies_on_root and not os.path.exists(root):
                yield 'data_root', root
            else:
                yield key, path
    if root and not ends:
        yield 'data_root', root


def evaluators_of(cfg: Config, split: str) -> Iterator[tuple[str, Mapping]]:
    """Yields (key, config) of what computes a split's scores."""
    evaluators = cfg.get(f'{split}_evaluator')
    if split == 'train' or cfg.get(f'{split}_cfg') is None:
        return
    if isinstance(evaluators, dict):
        yield f'{split}_evaluator', evaluators
        return
    for index, evaluator in children(evaluators):
        yield f'{split}_evaluator.{index}', evaluator


def finds_its_files(part: Mapping, scope: str | None) -> bool:
    """Whether a class of the user's own reads the paths in its config."""
    kind = part.get('type')
    for registry in (DATASETS, METRICS):
        if isinstance(kind, str):
            with registry.switch_scope_and_registry(scope) as scoped:
                kind = scoped.get(kind) or kind
    return is_own_class(kind, ('__init__', 'load_data_list', '_join_prefix'))


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Refuses a config whose data are not where it says."""
    needed = {}
    for split in splits:
        for where, dataset in datasets_of(cfg, split):
            root = dataset.get('data_root')
            if root is not None and not isinstance(root, str | Path):
                raise ValueError(f'{where}.data_root must be a path: {root!r}')
            meta = dataset.get('metainfo')
            check_slips(f'{where}.metainfo', meta, METAINFO)
            for end, path in local_paths(dataset):
                needed[f'{where}.{end}'] = path, dataset
        for key, evaluator in evaluators_of(cfg, split):
            if is_local(evaluator):
                path = evaluator.get('ann_file') or None
                needed[f'{key}.ann_file'] = path, evaluator
    missing = {
        key: str(path)
        for key, (path, part) in needed.items()
        if isinstance(path, str | Path)
        and '://' not in str(path)
        and not os.path.exists(os.path.expanduser(path))
        and not finds_its_files(part, cfg.get('default_scope'))
    }
    if missing:
        lines = [f'  {key}: {path!r}' for key, path in missing.items()]
        options = ' '.join(f'{key}=PATH' for key in missing)
        raise FileNotFoundError(
            f'the config names missing data, relative to '
            f'{os.getcwd()}\n' + '\n'.join(lines) + '\nPut or link them '
            f'there, or give their paths:\n  --cfg-options {options}'
        )


def check_slips(key: str, given: object, known: Iterable[str]) -> None:
    """Refuse slips of the names that are read; others are ignored there."""
    for name in given if isinstance(given, Mapping) else ():
        near = difflib.get_close_matches(name.lower(), known, 1, 0.8)
        if name not in known and near and near[0] not in given:
            raise ValueError(f'{key} has {name!r}; did you mean {near[0]!r}?')
