"""Tells whether somebody has replaced what a call of the layers runs.

These are methods of classes and functions of torch. The kernels would go on
computing the former ones.
"""

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


def _read() -> list[object]:
    """What runs: tools that reload files put new code into old functions."""
    methods = [getattr(owner, name) for owner, name in _METHODS]
    return [getattr(method, '__code__', method) for method in methods]


def _is_original(owner: object, name: str) -> bool:
    """Whether it is a method of its class, or torch's function."""
    method = getattr(owner, name)
    home = getattr(method, '__globals__', {'__name__': 'torch.nn.'})
    if not home['__name__'].startswith(('torch.nn.', layers.__name__)):
        return False
    if owner is F:
        return method.__name__ == name
    owners = tuple(f'{base.__name__}.' for base in owner.__mro__)
    return getattr(method, '__qualname__', '').startswith(owners)


# None where somebody had patched it before this import.
_originals = [
    code if _is_original(*method) else None
    for method, code in zip(_METHODS, _read(), strict=True)
]


def patched() -> str | None:
    """A class or module with a replaced method or function, or None."""
    found = _read()
    if found == _originals:
        return None
    for i, (owner, name) in enumerate(_METHODS):
        if _originals[i] is None and _is_original(owner, name):
            _originals[i] = found[i]
        if found[i] != _originals[i]:
            return f'{owner.__name__} has a patched {name}'
    return None
