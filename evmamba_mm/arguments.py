"""Legal values of arguments by name, and the keywords that were meant.

A name means the same in every class and function, so one table serves all.
"""

import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec('P')
T = TypeVar('T')

# More groups than any feature map has use for; their number is the square.
MAX_STEP_SIZE = 64
# Beyond what any model has use for; tensors of such sizes cannot be made.
MAX_CHANNELS, MAX_DEPTH, MAX_RATIO = 16384, 1024, 256
LARGEST = {
    **dict.fromkeys(('dt_rank', 'img_size', 'in_channels'), MAX_CHANNELS),
    **dict.fromkeys(('expand_ratio', 'inverted_expand_ratio'), MAX_RATIO),
    **dict.fromkeys(('d_state', 'patch_size'), 4096),
}
# Implementations of the scan, and 'auto'.
BACKENDS = ('auto', 'naive', 'torch', 'mamba_ssm', 'numba', 'cuda')
# What other backbones call it, and what it is here.
SYNONYMS = {
    'pretrained': "init_cfg=dict(type='Pretrained', checkpoint=...)",
    'checkpoint': "init_cfg=dict(type='Pretrained', checkpoint=...)",
    'drop_path': 'drop_path_rate',
    'drop_rate': 'drop_path_rate',
    'in_chans': 'in_channels',
    'model_size': 'arch',
    **dict.fromkeys(
        ('channels', 'depth', 'depths', 'dims', 'embed_dim', 'embed_dims'),
        'arch=dict(...) with widths and depths',
    ),
    'dim': 'channels',
    'out_features': 'out_indices',
    'use_checkpoint': 'with_cp',
    'window_size': 'step_size',
    'ssm_d_state': 'd_state',
    'ssm_ratio': 'expand_ratio',
    'ssm_dt_rank': 'dt_rank',
    'forward_type': 'block_types',
    'backend': 'scan_backend',
}


def is_integer(value: object) -> bool:
    """Whether it is an integer, also one of NumPy or of a traced shape."""
    is_int = isinstance(value, Integral | torch.SymInt)
    return is_int and not isinstance(value, bool)


def check_size(name: str, value: int) -> None:
    """Refuse what is no integer from 1 to the largest of that name."""
    most = LARGEST.get(name)
    limit = f' and at most {most}' if most else ''
    if not is_integer(value) or value < 1 or (most and value > most):
        raise ValueError(
            f'{name} must be an integer of at least 1{limit}, got {value!r}'
        )


def check_optional_size(name: str, value: int | None) -> None:
    """Refuse what is neither None nor such an integer."""
    if value is not None:
        check_size(name, value)


def check_step_size(name: str, value: int) -> None:
    """Refuse what is no integer from 1 to the largest step."""
    if not is_integer(value) or not 1 <= value <= MAX_STEP_SIZE:
        raise ValueError(
            f'{name} must be an integer of at least 1 and at most '
            f'{MAX_STEP_SIZE}, got {value!r}'
        )


def check_ratio(name: str, value: float) -> None:
    """Refuse what is no positive number up to the largest ratio."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= MAX_RATIO:
        raise ValueError(
            f'{name} must be a positive number of at most {MAX_RATIO}, got '
            f'{value!r}'
        )


def check_rate(name: str, value: float) -> None:
    """Refuse a rate outside of [0, 1), with a ValueError."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0.0 <= value < 1.0:
        raise ValueError(f'{name} must lie in [0, 1), got {value!r}')


def check_momentum(name: str, value: float) -> None:
    """Refuse what does not lie between 0 and 1, with a ValueError."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0.0 < value < 1.0:
        raise ValueError(f'{name} must lie between 0 and 1, got {value!r}')


def check_backend(name: str, value: str) -> None:
    """Refuse what is none of :data:`BACKENDS`, with a ValueError."""
    if not isinstance(value, str) or value not in BACKENDS:
        raise ValueError(
            f'{name} must be one of {", ".join(BACKENDS)}, got {value!r}'
        )


def check_device(name: str, value: str | torch.device | None) -> None:
    """Refuse what is neither None nor a device, with a ValueError."""
    legal = type(value) in (type(None), str, int, torch.device)
    try:
        legal = legal and (value is None or bool(torch.device(value)))
    except RuntimeError:
        legal = False
    if not legal:
        raise ValueError(
            f"{name} must be None or a device such as 'cpu' or 'cuda:0', got "
            f'{value!r}'
        )


def check_switch(name: str, value: bool) -> None:
    """Refuse what is neither True nor False: 'no' would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f'{name} must be True or False, got {value!r}')


def check_factory(name: str, value: Callable[[], nn.Module]) -> None:
    """Refuse what makes no module, such as a module that is made."""
    if isinstance(value, nn.Module) or not callable(value):
        raise ValueError(
            f'{name} must make a module, such as torch.nn.GELU, got {value!r}'
        )


def check_module(name: str, value: nn.Module) -> None:
    """Refuse what is no module, with a ValueError."""
    if not isinstance(value, nn.Module):
        raise ValueError(
            f'{name} must be a torch.nn.Module, got {type(value).__name__}'
        )


def check_tensor(name: str, value: Tensor) -> None:
    """Refuse what is no tensor, with a ValueError."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f'{name} must be a tensor, got {type(value).__name__}'
        )


def check_floats(name: str, value: Tensor) -> None:
    """Refuse what is no tensor of a real floating dtype."""
    check_tensor(name, value)
    if not value.is_floating_point():
        raise ValueError(
            f'{name} must have a real floating dtype, got {value.dtype}'
        )


def check_path(name: str, value: str | os.PathLike | None) -> None:
    """Refuse what is neither a path nor, where it may be absent, None."""
    if value is not None and not isinstance(value, str | os.PathLike):
        raise ValueError(f'{name} must be a path, got {value!r}')


def check_mapping(name: str, value: Mapping) -> None:
    """Refuse what is no dict, with a ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError(f'{name} must be a dict, got {value!r}')


def check_optional_mapping(name: str, value: Mapping | None) -> None:
    """Refuse what is neither None nor a dict."""
    if value is not None:
        check_mapping(name, value)


def check_optional_mappings(
    name: str, value: Sequence[Mapping] | None
) -> None:
    """Refuse what is neither None nor a list of dicts."""
    is_list = isinstance(value, list | tuple)
    if value is not None and not (
        is_list and all(isinstance(each, Mapping) for each in value)
    ):
        raise ValueError(f'{name} must be a list of dicts, got {value!r}')


def check_init_cfg(name: str, value: dict | list | None) -> None:
    """Refuse what is neither None nor configs of an initialisation."""
    configs = value if isinstance(value, list | tuple) else [value]
    fits = (
        isinstance(c, Mapping) and isinstance(c.get('type'), str | type)
        for c in configs
    )
    if value is not None and not all(fits):
        raise ValueError(
            f"{name} must be None, a dict such as dict(type='Pretrained', "
            f'checkpoint=...) or a list of such dicts, got {value!r}'
        )


def check_channel_values(name: str, value: Sequence[float] | None) -> None:
    """Refuse what is neither None nor a number a channel."""
    is_list = isinstance(value, list | tuple)
    numbers = value if is_list else [value]
    legal = (
        isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)
        for x in numbers
    )
    if value is not None and not (is_list and len(value) and all(legal)):
        raise ValueError(
            f'{name} must be a list of finite numbers, one a channel, got '
            f'{value!r}'
        )


CHECKS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(
        (
            *('batch_size', 'channels', 'd_conv', 'd_state', 'expand_ratio'),
            *(
                'height',
                'hidden',
                'img_size',
                'in_channels',
                'interval',
                'limit',
            ),
            *('inverted_expand_ratio', 'out_channels', 'parameter_sets'),
            *('patch_size', 'repeats', 'shapes', 'width'),
        ),
        check_size,
    ),
    **dict.fromkeys(('dt_rank', 'num_classes'), check_optional_size),
    **dict.fromkeys(
        ('inverted_se_ratio', 'reduce_ratio', 'se_ratio', 'squeeze_ratio'),
        check_ratio,
    ),
    **dict.fromkeys(('drop_path_rate', 'drop_prob'), check_rate),
    **dict.fromkeys(
        (
            *('distinct', 'fusion', 'norm_eval', 'strict', 'to_onehot'),
            *('to_rgb', 'update_buffers', 'with_cp', 'write_json'),
        ),
        check_switch,
    ),
    **dict.fromkeys(('backend', 'scan_backend'), check_backend),
    **dict.fromkeys(('checkpoint', 'out_dir', 'path'), check_path),
    **dict.fromkeys(('mean', 'std'), check_channel_values),
    **dict.fromkeys(('mixer', 'model'), check_module),
    'act': check_factory,
    'batch_augments': check_optional_mapping,
    'device': check_device,
    'image_augments': check_optional_mappings,
    'init_cfg': check_init_cfg,
    'momentum': check_momentum,
    'optim_wrapper_cfg': check_mapping,
    'paramwise_cfg': check_optional_mapping,
    'step_size': check_step_size,
}


def check_keywords(
    owner: str, given: Iterable[str], legal: Sequence[str]
) -> None:
    """Refuse unknown keywords, with a ValueError that says what was meant."""
    for name in given:
        if name in legal:
            continue
        meant = SYNONYMS.get(name, '')
        near = difflib.get_close_matches(name, legal, n=1)
        if meant.partition('=')[0] in legal:
            hint = f'use {meant}'
        elif near:
            hint = f'did you mean {near[0]!r}?'
        else:
            hint = f'legal are {", ".join(legal)}'
        raise ValueError(f'{owner} has no argument {name!r}; {hint}')


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Let a constructor or function refuse what :data:`CHECKS` does not allow.

    Arguments that may be lists, one value a stage, are left to the function.

    Raises:
        ValueError: By the result, if a keyword is unknown or a value illegal.
    """
    signature = inspect.signature(function)
    parameters = {k: v for k, v in signature.parameters.items() if k != 'self'}
    owner = function.__qualname__.removesuffix('.__init__')
    checks = {
        name: CHECKS[name]
        for name, parameter in parameters.items()
        if name in CHECKS and '| collections' not in str(parameter.annotation)
    }

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        check_keywords(owner, kwargs, list(parameters))
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            # Python itself says which argument is missing.
            return function(*args, **kwargs)
        for name, check in checks.items():
            if name in given:
                check(name, given[name])
        return function(*args, **kwargs)

    return wrapper
