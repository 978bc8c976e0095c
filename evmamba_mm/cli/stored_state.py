"""Garbage in the state of a training that a checkpoint holds."""

import math
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

from mmengine.runner import Runner
from torch import Tensor

# Of a checkpoint's meta, where they are there.
META = dict(seed=0, batches_done=0)
# Of its message hub.
INFO = dict(epoch=0, iter=0, max_epochs=0, max_iters=0)
KINDS = {
    'a number': (Number, Tensor),
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
    hub = checkpoint.get('message_hub') or {}
    info = hub.get('runtime_info')
    names = info if isinstance(info, Mapping) else ()
    scores = {key: 0.0 for key in names if key.startswith('best_score')}
    own = dict(
        meta=META,
        optimizer=optimizer.state_dict(),
        param_schedulers=schedulers,
        message_hub=dict(log_scalars={}, runtime_info=INFO | scores),
    )
    found = list(_misfits(own, checkpoint, ''))
    return found or list(_of_optimizer(checkpoint.get('optimizer')))


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return ''
    return next((k for k, v in KINDS.items() if isinstance(value, v)), '')


def _is_nan(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and math.isnan(value)
    return isinstance(value, float) and math.isnan(value)


def _misfits(own: object, given: object, key: str) -> Iterator[str]:
    wanted = _kind(own)
    if given is None or not wanted:
        return
    if _kind(given) != wanted or _is_nan(given):
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


def _of_optimizer(stored: Mapping[str, Any] | None) -> Iterator[str]:
    """Look at what it keeps for each parameter; a new one keeps nothing."""
    named = {'optimizer': stored or {}}
    if 'state' not in named['optimizer']:
        # Several optimisers.
        named = {f'optimizer.{k}': v for k, v in (stored or {}).items()}
    for name, each in named.items():
        states = each.get('state') if isinstance(each, Mapping) else None
        for index, state in (states or {}).items():
            place = f'{name}.state.{index}'
            yield from _misfits({}, state, place)
            for key, value in getattr(state, 'items', tuple)():
                # Some keep lists of tensors.
                several = isinstance(value, list | tuple) and all(
                    x is None or isinstance(x, Tensor) for x in value
                )
                if not several and not isinstance(value, bool | Mapping):
                    yield from _misfits(0, value, f'{place}.{key}')
