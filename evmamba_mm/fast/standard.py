"""Checks that the fused kernels compute exactly what a block does.

The reference is the block that the package's classes build with the sizes of
the weights. Module by module, the block must have the classes, settings,
children and shapes of the reference.

Shape letters: C channels, D inner channels, E hidden channels, K parameter
sets, N states, P patch size, R dt rank.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from ..layers import (
    ES2D,
    SS2D,
    ConvSqueezeExcite,
    DropPath,
    EVSSBlock,
    InvertedResidual,
    LayerNorm,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
    ScanMixer,
    SqueezeExcite,
)
from .snapshot import take_snapshot, unchanged

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TENSORS = (nn.Parameter, Tensor)
_KINDS = (
    ConvSqueezeExcite,
    DropPath,
    ES2D,
    EVSSBlock,
    InvertedResidual,
    LayerNorm,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
    SS2D,
    SqueezeExcite,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.GELU,
    nn.Identity,
    nn.LayerNorm,
    nn.Linear,
    nn.ReLU,
    nn.Sequential,
    nn.SiLU,
)
# Where a class of the reference stands for others: torch's LayerNorm gives the
# same on a GPU, and `fuse` leaves an Identity for a BatchNorm2d.
_LEGAL = {
    LayerNorm: (LayerNorm, nn.LayerNorm),
    ScanMixer: (ES2D, SS2D),
    nn.BatchNorm2d: (nn.BatchNorm2d, nn.Identity),
}
# Settings that the kernels read from the module, or that change nothing.
_FREE = ('training', 'eps', 'momentum', 'drop_prob', 'backend')
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
# The methods of the classes at import, before anybody patches them.
_METHODS = [
    (kind, name, getattr(kind, name))
    for kind in _KINDS
    for name in ('__call__', *_METHOD_NAMES)
    if name in kind.__dict__ or name in ('__call__', 'forward')
] + [(nn.Module, '_call_impl', nn.Module._call_impl)]
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
    if not module.__dict__.keys().isdisjoint(_METHOD_NAMES):
        own = module.__dict__.keys() & _METHOD_NAMES
        _refuse(name, f'has a patched {", ".join(sorted(own))}')


def _check_classes() -> None:
    if _has_global_hooks():
        raise _Difference('global module hooks are registered')
    for kind, method, original in _METHODS:
        if getattr(kind, method) is not original:
            raise _Difference(f'{kind.__name__} has a patched {method}')


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
        kinds: Classes that stand for it.
        settings: Attributes that must be equal.
        tensors: Shapes of parameters and buffers; None where there is none.
        optional: Those that may be None.
        children: Names of its children.
    """

    kinds: Sequence[type[nn.Module]]
    settings: dict[str, object]
    tensors: dict[str, torch.Size | None]
    optional: Sequence[str]
    children: list[str]


def _part(module: nn.Module) -> _Part:
    kinds = _LEGAL.get(type(module), (type(module),))
    if not set(kinds) <= set(_KINDS):
        raise _Difference(f'new blocks have a {kinds[0].__name__} of others')
    settings = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith('_') and key not in _FREE
    }
    if type(module) is nn.ReLU:
        # Nothing else reads what it would overwrite.
        del settings['inplace']
    tensors = {
        key: None if x is None else x.shape
        for key, x in {**module._parameters, **module._buffers}.items()
    }
    optional = ['num_batches_tracked']
    if type(module) is nn.Conv2d and tensors['bias'] is None:
        # `fuse` adds a bias.
        tensors['bias'] = tensors['weight'][:1]
        optional.append('bias')
    return _Part(kinds, settings, tensors, optional, [*module._modules])


@lru_cache(maxsize=256)
def _reference(
    make: Callable[..., nn.Module], *sizes: int
) -> dict[str, _Part]:
    """The modules of a new block of these sizes, by path."""
    with torch.device('meta'):
        modules = make(*sizes).named_modules()
        return {path: _part(module) for path, module in modules}


def _sizes(block: nn.Module, name: str, count: int = 1) -> list[int]:
    """Shape of a parameter; of ones where it has not as many dimensions."""
    path, _, key = f'.{name}'.rpartition('.')
    try:
        # Reading an attribute may run a parametrisation.
        x = attrgetter(f'{path}._parameters'[1:])(block)[key]
    except (AttributeError, KeyError):
        x = None
    # An uninitialised parameter has no shape.
    if type(x) not in _TENSORS or x.dim() != count:
        return [1] * count
    return [max(1, size) for size in x.shape]


def _new_evss_block(
    C: int, K: int, D: int, R: int, N: int, E: int, fusion: bool
) -> EVSSBlock:
    mixer = ScanMixer(C, K, N, max(1, D // C), R)
    return EVSSBlock(C, mixer, fusion, se_ratio=(E + 0.5) / C)


def _evss_block(block: EVSSBlock) -> tuple[dict[str, _Part], int, int]:
    (C,) = _sizes(block, 'norm.weight')
    K, D, R = _sizes(block, 'mixer.dt_projs_weight', 3)
    _, N = _sizes(block, 'mixer.A_logs', 2)
    (E,) = _sizes(block, 'se.global_reduce.bias')
    sizes = C, K, D, R, N, E, bool(block.fusion)
    return _reference(_new_evss_block, *sizes), C, 1


def _new_inverted_residual(C: int, D: int, E: int) -> InvertedResidual:
    return InvertedResidual(C, max(1, D // C), (E + 0.5) / D)


def _inverted_residual(
    block: InvertedResidual,
) -> tuple[dict[str, _Part], int, int]:
    C = _sizes(block, 'conv_pw2.0.weight', 4)[0]
    D = _sizes(block, 'conv_pw.0.weight', 4)[0]
    E = _sizes(block, 'se.conv_reduce.weight', 4)[0]
    return _reference(_new_inverted_residual, C, D, E), C, 1


def _patch_embed(block: PatchEmbed) -> tuple[dict[str, _Part], int, int]:
    C, inputs, P, _ = _sizes(block, 'conv.weight', 4)
    return _reference(PatchEmbed, inputs, C, P), inputs, P


def _patch_merging(block: PatchMerging) -> tuple[dict[str, _Part], int, int]:
    C = max(1, _sizes(block, 'norm.weight')[0] // 4)
    outputs, _ = _sizes(block, 'reduction.weight', 2)
    return _reference(PatchMerging, C, outputs), C, 1


def _output_norm(block: LayerNorm2d) -> tuple[dict[str, _Part], int, int]:
    (C,) = _sizes(block, 'weight')
    return _reference(LayerNorm2d, C), C, 1


# Each gives the reference of a block, the channels of its input, and the least
# height and width.
_REFERENCES: dict[type[nn.Module], Callable] = {
    EVSSBlock: _evss_block,
    InvertedResidual: _inverted_residual,
    LayerNorm2d: _output_norm,
    PatchEmbed: _patch_embed,
    PatchMerging: _patch_merging,
}


def _compare_settings(name: str, module: nn.Module, part: _Part) -> None:
    # Pruning leaves an attribute that hides the parameter.
    for key in (*part.tensors, *part.children):
        if key in vars(module):
            _refuse(name, f'has an attribute that hides its {key}')
    for key, expected in part.settings.items():
        actual = getattr(module, key, None)
        if actual != expected:
            _refuse(name, f'has {key}={actual!r}, not {expected!r}')
    if getattr(module, 'momentum', 0) is None:
        _refuse(name, 'has momentum=None')
    # What others have beside these children is never called.
    children = [*module._modules]
    if type(module) is nn.Sequential and children != part.children:
        _refuse(name, f'has children {children}, not {part.children}')


def _compare_tensors(
    name: str,
    module: nn.Module,
    part: _Part,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
) -> None:
    found = {**module._parameters, **module._buffers}
    for key, shape in part.tensors.items():
        x = found.get(key)
        if x is None and (shape is None or key in part.optional):
            continue
        if x is None or shape is None:
            _refuse(name, f'has {"no" if x is None else "a"} {key}')
        if (
            type(x) not in _TENSORS
            or x.layout is not torch.strided
            or x.is_neg()
        ):
            _refuse(name, f'has a {key} that is no ordinary tensor')
        if x.shape != shape:
            found, wanted = tuple(x.shape), tuple(shape)
            _refuse(name, f'has a {key} of shape {found}, not {wanted}')
        counts = key == 'num_batches_tracked'
        legal = (torch.int64,) if counts else dtypes
        if x.dtype not in legal or x.device != device:
            _refuse(name, f'has its {key} in {x.dtype} on {x.device}')


def _check(
    block: nn.Module, device: torch.device, dtypes: Sequence[torch.dtype]
) -> tuple[int, int]:
    """Compare a block with its reference, and keep a snapshot of it.

    Returns:
        Channels of the input, and its least height and width.
    """
    parts, channels, least = _REFERENCES[type(block)](block)
    modules = {}
    for path, part in parts.items():
        parent, _, name = path.rpartition('.')
        module = modules[parent]._modules.get(name) if path else block
        _untouched(path, module, part.kinds)
        modules[path] = module
    for path, part in parts.items():
        if type(modules[path]) is not nn.Identity:
            _compare_settings(path, modules[path], part)
            _compare_tensors(path, modules[path], part, device, dtypes)
    take_snapshot(modules.values(), device, dtypes, (channels, least))
    return channels, least


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
    if kind not in _REFERENCES:
        return f'there are no kernels for a {kind.__name__}'
    device, shape = x.device, x.shape
    autocast = torch.is_autocast_enabled(device.type)
    dtypes = KERNEL_DTYPES if autocast else (x.dtype,)
    try:
        _check_classes()
        sizes = unchanged(block, device, dtypes)
        channels, least = sizes or _check(block, device, dtypes)
    except _Difference as difference:
        return str(difference)
    if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < least:
        return f'the input has shape {tuple(shape)}'
    return None
