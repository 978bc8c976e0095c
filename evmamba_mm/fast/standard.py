"""Checks that the fused kernels compute exactly what a block does.

A call checks all of a block only if it has changed since the last check.
"""

import operator
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import layers
from ..ops.tracing import has_global_hooks
from .parts import KINDS, PARTS, Part
from .snapshot import take_snapshot, unchanged
from .sources import edited_source

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# A call of a module runs these, of the instance if it has its own.
_METHOD_NAMES = (
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
    for name in ('__call__', *_METHOD_NAMES)
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
_EDITED = edited_source()


class _Difference(Exception):
    """A module is not what the kernels compute; the message says how."""


def _refuse(name: str, why: str) -> None:
    raise _Difference(f'{name or "the block"} {why}')


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs more than its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _untouched(
    name: str, module: nn.Module, kinds: Sequence[type[nn.Module]]
) -> None:
    """The module has one of these classes, without hooks or patches."""
    found = type(module)
    if found not in kinds:
        legal = ' or '.join(dict.fromkeys(kind.__name__ for kind in kinds))
        of = f' of {found.__module__}' if found.__name__ in legal else ''
        _refuse(name, f'is a {found.__name__}{of}, not a {legal}')
    if has_hooks(module):
        _refuse(name, 'has a hook')
    own = sorted(vars(module).keys() & _METHOD_NAMES)
    if own:
        _refuse(name, f'has a patched {", ".join(own)}')


def _check_classes() -> None:
    if has_global_hooks():
        raise _Difference('global module hooks are registered')
    methods = [*_methods(_CLASSES)]
    if methods == _originals and [*map(_code, _OURS)] == _CODES:
        return
    edited = [
        x for x, code in zip(_OURS, _CODES, strict=True) if x.__code__ != code
    ]
    for index, (kind, name) in enumerate(_METHODS):
        method = methods[index]
        if _originals[index] is None and _is_original(kind, name, method):
            _originals[index] = method
        if method is not _originals[index] or method in edited:
            raise _Difference(f'{kind.__name__} has a patched {name}')


def change_of(
    module: nn.Module, kind: type[nn.Module], name: str = ''
) -> str | None:
    """Why a module is not one of exactly this class, without hooks or patches.

    Args:
        module: Any.
        kind: The class.
        name: What the module is called in the answer.

    Returns:
        None if it is.
    """
    try:
        _check_classes()
        _untouched(name, module, [kind])
    except _Difference as difference:
        return str(difference)
    return None


def _check_presence(name: str, module: nn.Module, part: Part) -> None:
    """The module is one of the kinds, with ordinary tensors."""
    _untouched(name, module, part.kinds)
    if type(module) is nn.Identity:
        return
    found = {**module._parameters, **module._buffers}
    for key, shape in part.shapes.items():
        x = found.get(key)
        if x is None:
            if shape is not None and key != 'num_batches_tracked':
                _refuse(name, f'has no {key}')
        elif shape is None:
            _refuse(name, f'has a {key}')
        elif (
            type(x) not in (Tensor, nn.Parameter)
            or x.layout is not torch.strided
            or x.is_neg()
        ):
            _refuse(name, f'has a {key} that is no ordinary tensor')


def _check_values(
    name: str,
    module: nn.Module,
    part: Part,
    children: list[str],
    place: tuple[torch.device, Sequence[torch.dtype]],
) -> None:
    """Settings, children and tensors are those of the part."""
    actual = vars(module)
    for key in (*part.shapes, *children):
        # So does pruning.
        if key in actual:
            _refuse(name, f'has an attribute that hides its {key}')
    for key, expected in part.settings.items():
        value = actual.get(key)
        if value != expected:
            _refuse(name, f'has {key}={value!r}, not {expected!r}')
    if actual.get('momentum', 0) is None:
        _refuse(name, 'has momentum=None')
    # Other modules do not call what they have beside these children.
    found = [*module._modules]
    if type(module) is nn.Sequential and found != children:
        _refuse(name, f'has children {found}, not {children}')
    for key, x in (*module._parameters.items(), *module._buffers.items()):
        shape = part.shapes.get(key)
        if x is None or shape is None:
            continue
        if x.shape != shape:
            shapes = f'{tuple(x.shape)}, not {shape}'
            _refuse(name, f'has a {key} of shape {shapes}')
        counts = key == 'num_batches_tracked'
        dtypes = (torch.int64,) if counts else place[1]
        if x.dtype not in dtypes or x.device != place[0]:
            _refuse(name, f'has its {key} in {x.dtype} on {x.device}')


def _check(
    block: nn.Module, place: tuple[torch.device, Sequence[torch.dtype]]
) -> list[int]:
    """Check all of a block, and keep a snapshot of it.

    Returns:
        Channels of the input, and its least height and width.
    """
    parts, *sizes = PARTS[type(block)](block)
    modules, children = {'': block}, {path: [] for path in parts}
    for path, part in parts.items():
        if path:
            parent, _, name = path.rpartition('.')
            modules[path] = modules[parent]._modules.get(name)
            children[parent].append(name)
        _check_presence(path, modules[path], part)
    for path, module in modules.items():
        if type(module) is not nn.Identity:
            _check_values(path, module, parts[path], children[path], place)
    take_snapshot([*modules.values()], place, sizes)
    return sizes


def difference(block: nn.Module, x: Tensor) -> str | None:
    """Which module of a block the kernels do not compute, and why.

    Args:
        block: A stem, a block of a stage, a patch merging or an output norm.
        x: Its input. All parameters must be on its device and, without
            autocast, in its dtype.

    Returns:
        None where the kernels compute exactly what the block does.
    """
    kind = type(block)
    if kind not in PARTS:
        # A stage is passed as a whole if it is more than its blocks.
        why = change_of(block, kind) if kind is nn.Sequential else None
        return why or f'there are no kernels for a {kind.__name__}'
    if _EDITED:
        return f'the source of {_EDITED} was edited'
    shape = x.shape
    autocast = torch.is_autocast_enabled(x.device.type)
    place = x.device, KERNEL_DTYPES if autocast else (x.dtype,)
    try:
        _check_classes()
        channels, least = unchanged(block, place) or _check(block, place)
    except _Difference as difference:
        return str(difference)
    if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < least:
        return f'the input has shape {tuple(shape)}'
    return None
