"""Tells whether somebody has replaced what a call of the layers runs.

These are methods of classes and functions of torch. The kernels would go on
computing the former ones.
"""

from types import BuiltinFunctionType, FunctionType, ModuleType

import torch.nn.functional as F
from torch import nn

from .. import layers
from ..layers import layer_norm
from .parts import KINDS

# A call of a module runs these, of the instance if it has its own.
METHOD_NAMES = (
    '_call_impl',
    '_check_input_dim',
    '_compiled_call_impl',
    '_conv_forward',
    'forward',
    'sample_scale',
    'scan',
)
_HOMES = 'torch.nn.', layers.__name__
_METHODS = [(nn.Module, '_call_impl')] + [
    (kind, name)
    for kind in KINDS
    for name in ('__call__', *METHOD_NAMES)
    if hasattr(kind, name)
]
# What the modules call in turn. Counters of FLOPs, for one, replace these.
_METHODS += [
    (F, name)
    for name in (
        *('adaptive_avg_pool2d', 'batch_norm', 'conv2d', 'gelu'),
        *('layer_norm', 'linear', 'pad', 'relu', 'silu'),
    )
]
_METHODS += [(layer_norm, 'channels_first'), (layer_norm, 'channels_last')]


def _is_original(owner: object, name: str) -> bool:
    """Whether it is a method of its class, a function of its module."""
    method = getattr(owner, name)
    if method is None or owner is F and type(method) is BuiltinFunctionType:
        # None is for classes that are not compiled by themselves.
        return method is None or method.__name__ == name
    if type(method) is not FunctionType:
        return False
    if not method.__globals__['__name__'].startswith(_HOMES):
        return False
    if isinstance(owner, ModuleType):
        return method.__name__ == name
    owners = tuple(f'{base.__name__}.' for base in owner.__mro__)
    return method.__qualname__.startswith(owners)


# An ellipsis where somebody had patched it before this import.
_originals = [
    getattr(*method) if _is_original(*method) else ... for method in _METHODS
]
# Tools that reload edited files put new code into the old functions.
_FUNCTIONS = [*{x for x in _originals if type(x) is FunctionType}]
_METHODS += [(function, '__code__') for function in _FUNCTIONS]
_originals += [function.__code__ for function in _FUNCTIONS]


def patched() -> str | None:
    """A class or module with a replaced method or function, or None."""
    found = [getattr(owner, name) for owner, name in _METHODS]
    if found == _originals:
        return None
    for i, (owner, name) in enumerate(_METHODS):
        if _originals[i] is ... and _is_original(owner, name):
            _originals[i] = found[i]
        if found[i] is not _originals[i]:
            owner = getattr(owner, '__qualname__', owner.__name__)
            return f'{owner} has a patched {name}'
    return None
