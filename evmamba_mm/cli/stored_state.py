"""Garbage in the state of a training that a checkpoint holds."""

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor

# Of a checkpoint's meta, where they are there.
META = dict(seed=0, batches_done=0)
# Of its message hub.
INFO = dict(epoch=0, iter=0, max_epochs=0, max_iters=0)
# What optimisers keep for a parameter, where they keep it by these names.
AVERAGES = (
    *('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer'),
    *('square_avg', 'grad_avg', 'sum'),
)
# Of a group of parameters; torch has a default for others that are missing.
NEEDED = (
    *('lr', 'betas', 'momentum', 'alpha', 'eps', 'weight_decay', 'rho'),
    *('etas', 'step_sizes', 'dampening', 'lambd', 'momentum_decay'),
)
KINDS = {
    'a number': (Real, Tensor),
    'a dict': Mapping,
    'a list': (list, tuple),
    'a word': str,
}


def garbage_of(runner: Runner, checkpoint: Mapping[str, Any]) -> list[str]:
    """Say which parts of a stored state a training cannot go on from.

    The state of the new training, which nothing has been loaded into, has an
    example of what each part must be. None may stand for anything.

    Args:
        runner: Of the new training.
        checkpoint: What is to be resumed.
    """
    optimizer, schedulers = runner.optim_wrapper, runner.param_schedulers
    if isinstance(schedulers, Mapping):
        schedulers = {
            name: [each.state_dict() for each in several]
            for name, several in schedulers.items()
        }
    else:
        schedulers = [each.state_dict() for each in schedulers or ()]
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, Mapping) else None
    names = info if isinstance(info, Mapping) else ()
    scores = {key: 0.0 for key in names if key.startswith('best_score')}
    several = isinstance(optimizer, OptimWrapperDict)
    own = dict(
        meta=META,
        optimizer=_groups(optimizer.state_dict(), several),
        param_schedulers=schedulers,
        message_hub=dict(log_scalars={}, runtime_info=INFO | scores),
    )
    found = list(_misfits(own, checkpoint, ''))
    stored = checkpoint.get('optimizer')
    if found or stored is None:
        return found
    names = [f'.{name}' for name in own['optimizer']] if several else ['']
    for name in names:
        pair = own['optimizer'], stored
        if several:
            pair = (each.get(name[1:]) for each in pair)
        found += _of_optimizer(*pair, f'optimizer{name}')
    return found


def _groups(state: Mapping[str, Any], several: bool) -> Mapping[str, Any]:
    """What an optimiser's state has of groups; a few keep more when new."""
    if several:
        return {name: _groups(each, False) for name, each in state.items()}
    return dict(param_groups=state.get('param_groups', []), state={})


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return ''
    return next((k for k, v in KINDS.items() if isinstance(value, v)), '')


def _is_number(value: object) -> bool:
    """Whether it is one number, also in a tensor, and not NaN."""
    if isinstance(value, Tensor):
        real = value.numel() == 1 and not value.is_complex()
        return real and not value.is_meta and bool(value == value)
    # A NaN is not equal to itself.
    return isinstance(value, Real) and value == value


def _misfits(own: object, given: object, key: str) -> Iterator[str]:
    wanted = _kind(own)
    if given is None or not wanted:
        return
    fits = _kind(given) == wanted
    if wanted == 'a number':
        fits = _is_number(given)
    if not fits:
        yield f'{key} is {str(given)[:60]!r}, and must be {wanted}'
        return
    pairs = ()
    if wanted == 'a dict':
        pairs = [(k, own[k], given[k]) for k in own if k in given]
    elif wanted == 'a list':
        both = zip(own, given, strict=False)
        pairs = [(index, *pair) for index, pair in enumerate(both)]
    for inner, *pair in pairs:
        yield from _misfits(*pair, f'{key}.{inner}'.removeprefix('.'))


def _of_optimizer(
    own: Mapping[str, Any], stored: Mapping[str, Any] | None, name: str
) -> Iterator[str]:
    """Look at groups, and at what is kept for each parameter.

    A new optimiser keeps nothing to compare with, so only what has the name
    of an average is looked at: an optimiser may keep what it likes.
    """
    if stored is None:
        return
    both = zip(
        own['param_groups'], stored.get('param_groups', ()), strict=False
    )
    for index, (new, old) in enumerate(both):
        yield from _of_group(new, old, f'{name}.param_groups.{index}')
    for index, state in (stored.get('state') or {}).items():
        place = f'{name}.state.{index}'
        if not isinstance(state, Mapping):
            yield f'{place} is {str(state)[:60]!r}, and must be a dict'
            continue
        for key in AVERAGES:
            yield from _of_average(state.get(key), f'{place}.{key}')
        yield from _misfits(0, state.get('step'), f'{place}.step')


def _of_group(
    own: Mapping[str, Any], given: Mapping[str, Any], place: str
) -> Iterator[str]:
    needed = [key for key in NEEDED if own.get(key) is not None]
    missing = [key for key in needed if key not in given]
    if missing:
        yield f'{place} has no {missing[0]}: it is of another optimizer'
    for key in needed:
        value, pair = given.get(key), isinstance(own[key], list | tuple)
        if key in given and (value is None or pair and len(value) != 2):
            what = 'a pair' if pair else 'a number'
            yield f'{place}.{key} is {str(value)[:60]!r}, and must be {what}'
    rate = given.get('lr')
    if rate is not None and not 0 <= float(rate) < math.inf:
        yield f'{place}.lr is {str(rate)[:60]!r}, and must be a number from 0'


def _of_average(value: object, place: str) -> Iterator[str]:
    if value is None or isinstance(value, list | tuple):
        # Some keep several.
        return
    fits = isinstance(value, Tensor) and (
        value.is_floating_point() or value.is_complex()
    )
    # Not all narrow, sparse and other tensors can say which numbers are NaN.
    plain = type(value) is Tensor and value.layout is torch.strided
    plain = plain and value.element_size() > 1 and not value.is_meta
    if not fits or (plain and value.isnan().any()):
        what = getattr(value, 'dtype', str(value)[:60])
        yield f'{place} is {what}, and must be floats without NaN'
