"""Options of a backbone that may differ from stage to stage."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from mmengine.registry import MODELS
from torch import nn

from ..arguments import CHECKS, is_integer

T = TypeVar('T')


def check_frozen_stages(frozen: int, stages: int) -> int:
    """Refuse another count than -1 to that of the stages; return it."""
    if not is_integer(frozen) or frozen not in range(-1, stages + 1):
        raise ValueError(
            f'frozen_stages must be -1 to {stages}, got {frozen!r}'
        )
    return frozen


def per_stage(
    name: str,
    value: T | Sequence[T],
    stages: int,
) -> tuple[T, ...]:
    """One value per stage, from one value or a list.

    Args:
        name: Of the option; :data:`CHECKS` says what is legal.
        value: A value, or a list of as many as there are stages.
        stages: Number of stages.

    Raises:
        ValueError: If a value is illegal or the list has another length.
    """
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    values = tuple(value) if is_list else (value,) * stages
    if len(values) != stages:
        raise ValueError(
            f'{name} must be one value or a list of {stages}, one a stage, '
            f'got {value!r}'
        )
    for each in values:
        CHECKS[name](name, each)
    return values


def activation(name: str, cfg: Mapping) -> Callable[[], nn.Module]:
    """Builder of an activation, from a config such as dict(type='GELU').

    Args:
        name: Of the option, for the message.
        cfg: The key ``type`` names a class of ``torch.nn`` or one registered
            with mmengine; the other keys are its arguments.

    Raises:
        ValueError: If the config is malformed or the class unknown.
    """
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise ValueError(
            f"{name} must be a dict such as dict(type='GELU'), got {cfg!r}"
        )
    if cfg.get('inplace'):
        raise ValueError(
            f'{name} must not set inplace, got {cfg!r}: its input may be a '
            'view, and hooks would see changed feature maps'
        )
    arguments = dict(cfg)
    kind = arguments.pop('type')
    if isinstance(kind, str):
        found = getattr(nn, kind, None) or MODELS.get(kind)
        if not isinstance(found, type):
            raise ValueError(
                f'{name} must name a class of torch.nn or of mmengine, got '
                f'{kind!r}'
            )
        kind = found
    try:
        make = partial(kind, **arguments)
        made = make()
    except TypeError as error:
        raise ValueError(f'{name}={cfg!r} cannot be built: {error}') from None
    if not isinstance(made, nn.Module):
        raise ValueError(
            f'{name} must make a module, got {cfg!r}, which makes a '
            f'{type(made).__name__}'
        )
    return make
