"""Checks that the fused kernels compute exactly what a block does.

The reference is a new block with the sizes of the weights. Each module of a
block must have the class, settings, children and shapes of the reference's.

Shape letters: C channels, D inner channels, E hidden channels, K parameter
sets, N states, R dt rank.
"""

import operator
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from .. import layers
from .snapshot import take_snapshot, unchanged

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TENSORS = (nn.Parameter, Tensor)
# The classes as they are at import, before anybody replaces one.
_KINDS = (
    *(getattr(layers, name) for name in layers.__all__),
    *(nn.BatchNorm2d, nn.Conv2d, nn.GELU, nn.Identity, nn.LayerNorm),
    *(nn.Linear, nn.ReLU, nn.Sequential, nn.SiLU),
)
# What may stand for a class of the reference: torch's LayerNorm gives the same
# on a GPU, and `fuse` leaves an Identity for a BatchNorm2d.
_LEGAL = {
    layers.LayerNorm: (layers.LayerNorm, nn.LayerNorm),
    layers.ScanMixer: (layers.ES2D, layers.SS2D),
    nn.BatchNorm2d: (nn.BatchNorm2d, nn.Identity),
}
# Settings that the kernels read from the module.
_FREE = ('training', 'eps', 'momentum', 'drop_prob', 'backend')
# The weights whose shapes give the sizes of a block.
_WEIGHTS = {
    layers.EVSSBlock: (
        'norm.weight',
        'mixer.dt_projs_weight',
        'mixer.A_logs',
        'se.global_reduce.bias',
    ),
    layers.InvertedResidual: (
        'conv_pw2.0.weight',
        'conv_pw.0.weight',
        'se.conv_reduce.weight',
    ),
    layers.LayerNorm2d: ('weight',),
    layers.PatchEmbed: ('conv.weight',),
    layers.PatchMerging: ('norm.weight', 'reduction.weight'),
}
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
    for kind in _KINDS
    for name in ('__call__', *_METHOD_NAMES)
    if name in kind.__dict__ or name in ('__call__', 'forward')
] + [(nn.Module, '_call_impl')]
# Reads all of them in one call.
_CLASSES = SimpleNamespace(**{f'{id(kind)}': kind for kind, _ in _METHODS})
_methods = operator.attrgetter(
    *(f'{id(kind)}.{name}' for kind, name in _METHODS)
)
# As they are before anybody patches them.
_ORIGINALS = _methods(_CLASSES)
_has_global_hooks = getattr(nn_module, '_has_any_global_hook', lambda: False)


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
    if type(module) not in kinds:
        legal = ' or '.join(dict.fromkeys(kind.__name__ for kind in kinds))
        _refuse(name, f'is a {type(module).__name__}, not a {legal}')
    if has_hooks(module):
        _refuse(name, 'has a hook')
    own = sorted(vars(module).keys() & _METHOD_NAMES)
    if own:
        _refuse(name, f'has a patched {", ".join(own)}')


def _check_classes() -> None:
    if _has_global_hooks():
        raise _Difference('global module hooks are registered')
    methods = _methods(_CLASSES)
    if methods != _ORIGINALS:
        patched = map(operator.ne, methods, _ORIGINALS)
        kind, name = next(compress(_METHODS, patched))
        raise _Difference(f'{kind.__name__} has a patched {name}')


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this class, without hooks or patches."""
    try:
        _check_classes()
        _untouched('', module, [kind])
    except _Difference:
        return False
    return True


class _Part(NamedTuple):
    """A module of a reference.

    Args:
        kinds: Classes that may stand for it.
        settings: Attributes that must be equal.
        shapes: Of parameters and buffers, None where there is none.
        optional: Names of those that may be missing.
        children: Names of the children.
    """

    kinds: Sequence[type[nn.Module]]
    settings: dict[str, object]
    shapes: dict[str, torch.Size | None]
    optional: Sequence[str]
    children: Sequence[str]

    @classmethod
    def of(cls, new: nn.Module) -> '_Part':
        """What a module must have that is to be like a new one."""
        kind = type(new)
        if kind not in _KINDS:
            name = f'{kind.__name__} of another kind'
            raise _Difference(f'a new block has a {name}')
        # In place or not, nothing else reads the input of a ReLU.
        free = (*_FREE, 'inplace') if kind is nn.ReLU else _FREE
        settings = {
            key: value
            for key, value in vars(new).items()
            if key[0] != '_' and key not in free
        }
        shapes = {
            key: None if x is None else x.shape
            for key, x in {**new._parameters, **new._buffers}.items()
        }
        optional = ('num_batches_tracked',)
        if kind is nn.Conv2d and new.bias is None:
            # `fuse` adds biases.
            shapes['bias'], optional = new.weight.shape[:1], ('bias',)
        kinds = _LEGAL.get(kind, (kind,))
        return cls(kinds, settings, shapes, optional, [*new._modules])


def _shape(block: nn.Module, weight: str) -> tuple[int, ...]:
    """Shape of a parameter, with ones where it lacks one of 4 dimensions."""
    path, _, key = f'.{weight}'.rpartition('.')
    try:
        # Reading it as an attribute may run a parametrisation.
        x = operator.attrgetter(f'{path}._parameters'[1:])(block)[key]
    except (AttributeError, KeyError):
        x = None
    # An uninitialised parameter has no shape.
    shape = x.shape if type(x) in _TENSORS else ()
    return (*(max(1, size) for size in shape), 1, 1, 1, 1)[:4]


@lru_cache(maxsize=256)
def _reference(
    kind: type[nn.Module], fusion: bool, *shapes: tuple[int, ...]
) -> tuple[dict[str, _Part], int, int]:
    """The modules of a new block, and what it takes.

    Args:
        kind: Class of the block.
        fusion: Of an EVSS block.
        shapes: Of the parameters that :data:`_WEIGHTS` names, with ones for
            dimensions that they lack.

    Returns:
        The modules by path, parents first; the channels of the input; its
        least height and width.
    """
    channels, least = shapes[0][0], 1
    with torch.device('meta'):
        if kind is layers.EVSSBlock:
            (C, *_), (K, D, R, _), (_, N, *_), (E, *_) = shapes
            mixer = layers.ScanMixer(C, K, N, max(1, D // C), R)
            block = kind(C, mixer, fusion, se_ratio=(E + 0.5) / C)
        elif kind is layers.InvertedResidual:
            (C, *_), (D, *_), (E, *_) = shapes
            block = kind(C, max(1, D // C), (E + 0.5) / D)
        elif kind is layers.PatchEmbed:
            outputs, channels, least, _ = shapes[0]
            block = kind(channels, outputs, least)
        elif kind is layers.PatchMerging:
            channels = max(1, channels // 4)
            block = kind(channels, shapes[1][0])
        else:
            block = kind(channels)
    parts = {path: _Part.of(new) for path, new in block.named_modules()}
    return parts, channels, least


def _check_presence(name: str, module: nn.Module, part: _Part) -> None:
    """The module is one of the kinds, with ordinary tensors."""
    _untouched(name, module, part.kinds)
    if type(module) is nn.Identity:
        return
    # Pruning leaves an attribute that hides the parameter.
    for key in (*part.shapes, *part.children):
        if key in vars(module):
            _refuse(name, f'has an attribute that hides its {key}')
    found = {**module._parameters, **module._buffers}
    for key, shape in part.shapes.items():
        x = found.get(key)
        if x is None:
            if shape is not None and key not in part.optional:
                _refuse(name, f'has no {key}')
        elif shape is None:
            _refuse(name, f'has a {key}')
        elif (
            type(x) not in _TENSORS
            or x.layout is not torch.strided
            or x.is_neg()
        ):
            _refuse(name, f'has a {key} that is no ordinary tensor')


def _check_values(
    name: str,
    module: nn.Module,
    part: _Part,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
) -> None:
    """Settings and children are those of the part, and tensors fit."""
    actual = vars(module)
    for key, expected in part.settings.items():
        if actual.get(key) != expected:
            found = f'{key}={actual.get(key)!r}'
            _refuse(name, f'has {found}, not {expected!r}')
    if actual.get('momentum', 0) is None:
        _refuse(name, 'has momentum=None')
    # What others have beside these children is never called.
    children = [*module._modules]
    if type(module) is nn.Sequential and children != part.children:
        _refuse(name, f'has children {children}, not {part.children}')
    for key, x in (*module._parameters.items(), *module._buffers.items()):
        shape = part.shapes.get(key)
        if x is None or shape is None:
            continue
        if x.shape != shape:
            shapes = f'{tuple(x.shape)}, not {tuple(shape)}'
            _refuse(name, f'has a {key} of shape {shapes}')
        counts = key == 'num_batches_tracked'
        legal = (torch.int64,) if counts else dtypes
        if x.dtype not in legal or x.device != device:
            _refuse(name, f'has its {key} in {x.dtype} on {x.device}')


def _check(
    block: nn.Module, device: torch.device, dtypes: Sequence[torch.dtype]
) -> list[int]:
    """Compare a block with its reference, and keep a snapshot of it.

    Returns:
        Channels of the input, and its least height and width.
    """
    kind = type(block)
    shapes = [_shape(block, weight) for weight in _WEIGHTS[kind]]
    fusion = bool(getattr(block, 'fusion', False))
    reference, *sizes = _reference(kind, fusion, *shapes)
    modules = {}
    for path, part in reference.items():
        parent, _, name = path.rpartition('.')
        modules[path] = modules[parent]._modules.get(name) if path else block
        _check_presence(path, modules[path], part)
    for path, part in reference.items():
        if type(modules[path]) is not nn.Identity:
            _check_values(path, modules[path], part, device, dtypes)
    take_snapshot([*modules.values()], (device, dtypes), sizes)
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
    if kind not in _WEIGHTS:
        return f'there are no kernels for a {kind.__name__}'
    device, shape = x.device, x.shape
    autocast = torch.is_autocast_enabled(device.type)
    dtypes = KERNEL_DTYPES if autocast else (x.dtype,)
    try:
        _check_classes()
        sizes = unchanged(block, (device, dtypes))
        channels, least = sizes or _check(block, device, dtypes)
    except _Difference as difference:
        return str(difference)
    if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < least:
        return f'the input has shape {tuple(shape)}'
    return None
