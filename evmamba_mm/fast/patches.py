"""Tells whether somebody has replaced what a call of the layers runs.

These are methods of classes and functions of torch. The kernels would go on
computing the former ones.
"""

import operator
from collections.abc import Callable
from types import BuiltinFunctionType, SimpleNamespace

import torch.nn.functional as F
from torch import nn

from .. import layers
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
_METHODS = [
    (kind, name)
    for kind in KINDS
    for name in ('__call__', *METHOD_NAMES)
    if name in kind.__dict__ or name in ('__call__', 'forward')
] + [(nn.Module, '_call_impl')]
# What the modules call in turn. Counters of FLOPs, for one, replace these.
_METHODS += [
    (F, name)
    for name in (
        *('adaptive_avg_pool2d', 'batch_norm', 'conv2d', 'gelu'),
        *('layer_norm', 'linear', 'pad', 'relu', 'silu'),
    )
]
# Reads all of them in one call.
_CLASSES = SimpleNamespace(**{f'{id(kind)}': kind for kind, _ in _METHODS})
_methods = operator.attrgetter(
    *(f'{id(kind)}.{name}' for kind, name in _METHODS)
)


def _is_home(method: Callable, *homes: str) -> bool:
    space = getattr(method, '__globals__', {})
    return space.get('__name__', '').startswith(homes)


def _is_original(kind: object, name: str, method: Callable) -> bool:
    if kind is not F:
        owners = tuple(f'{owner.__name__}.' for owner in kind.__mro__)
        known = _is_home(method, 'torch.nn.', layers.__name__)
        return known and method.__qualname__.startswith(owners)
    known = isinstance(method, BuiltinFunctionType) or _is_home(
        method, 'torch.nn.'
    )
    return known and method.__name__ == name


# None where somebody had patched a method before this import.
_originals = [
    method if _is_original(*place, method) else None
    for place, method in zip(_METHODS, _methods(_CLASSES), strict=True)
]
# Tools that reload edited files put new code into the old functions.
_OURS = [*{x for x in _originals if _is_home(x, layers.__name__)}]
_code = operator.attrgetter('__code__')
_CODES = [*map(_code, _OURS)]


def patched() -> str | None:
    """A class or module with a replaced method or function, or None."""
    methods = [*_methods(_CLASSES)]
    if methods == _originals and [*map(_code, _OURS)] == _CODES:
        return None
    edited = [
        x for x, code in zip(_OURS, _CODES, strict=True) if x.__code__ != code
    ]
    for index, (kind, name) in enumerate(_METHODS):
        method = methods[index]
        if _originals[index] is None and _is_original(kind, name, method):
            _originals[index] = method
        if method is not _originals[index] or method in edited:
            return f'{kind.__name__} has a patched {name}'
    return None
