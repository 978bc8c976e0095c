"""Checks that the fused kernels compute exactly what a block does.

A call checks all of a block only if it has changed since the last check.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops.tracing import has_global_hooks
from .parts import PARTS, Part
from .patches import METHOD_NAMES, patched
from .snapshot import take_snapshot, unchanged
from .sources import edited_source

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
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
    own = sorted(vars(module).keys() & METHOD_NAMES)
    if own:
        _refuse(name, f'has a patched {", ".join(own)}')


def _check_classes() -> None:
    if has_global_hooks():
        raise _Difference('global module hooks are registered')
    why = patched()
    if why is not None:
        raise _Difference(why)


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
