"""A released checkpoint made into one for the hosts.

Of EfficientVMamba, of VMamba in its first version, or of Vim with a class
token among the patches; which one, its keys say.
"""

import argparse
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones import (
    ARCHS,
    VIM_ARCHS,
    VMAMBA_ARCHS,
    EfficientVMamba,
    Vim,
    VMamba,
)
from ..checkpoint import ConvertedCheckpoint, convert_released
from ..weight_files import read_weights
from ..whole_files import written_whole

# Where released files and their relatives keep the weights.
PLAIN_KEYS = ('state_dict', 'model')
EMA_KEYS = ('state_dict_ema', 'model_ema')
# No released name begins so; a classifier's or a host's begin by `backbone.`.
CONVERTED = re.compile(r'(module\.)*(backbone\.|stages\.\d|patch_embed\.conv)')
# Widths and depths of each published variant, by model.
SIZES = {
    'EfficientVMamba': {k: (v.channels, v.depths) for k, v in ARCHS.items()},
    'VMamba': {k: (v.channels, v.depths) for k, v in VMAMBA_ARCHS.items()},
    'Vim': {k: ((v.channels,), (v.depth,)) for k, v in VIM_ARCHS.items()},
}


def read_checkpoint(path: Path) -> Mapping:
    """Load a file without executing anything that it holds.

    Raises:
        ValueError: If it is not there, broken, or converted already.
    """
    # Training scripts store their arguments, a plain container, beside.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        loaded = read_weights(path)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    if is_converted(loaded):
        raise ValueError(
            f'{path} is already converted: a host loads it as it is, by '
            "load_from, or by init_cfg with prefix='backbone.'"
        )
    return loaded


def is_converted(loaded: Mapping) -> bool:
    """Return whether a loaded file has the names of this package."""
    weights = loaded.get('state_dict', loaded)
    if not isinstance(weights, Mapping):
        return False
    return any(CONVERTED.match(str(key)) for key in weights)


def select_weights(loaded: Mapping, ema: bool) -> Mapping[str, Tensor]:
    """The plain or the averaged weights of a loaded file."""
    keys = EMA_KEYS if ema else PLAIN_KEYS
    for key in keys:
        if isinstance(loaded.get(key), Mapping):
            return loaded[key]
    bare = loaded and all(isinstance(v, Tensor) for v in loaded.values())
    if bare and not ema:
        return loaded
    raise ValueError(
        f'the file has none of {", ".join(keys)}; it has '
        f'{", ".join(map(str, list(loaded)[:10]))}'
    )


def arch_name(converted: ConvertedCheckpoint) -> str | None:
    """Name of the published variant with these widths and depths, if any."""
    for name, sizes in SIZES[converted.model].items():
        if sizes == (converted.channels, converted.depths):
            return name
    return None


def build_vim(converted: ConvertedCheckpoint) -> Vim:
    """A Vim whose position embedding has the size of the converted one."""
    shapes = {
        key.removeprefix('backbone.'): tuple(value.shape)
        for key, value in converted.state_dict.items()
    }
    positions = shapes.get('pos_embed', (1, 197))[1]
    patch_size = shapes.get('patch_embed.proj.weight', (16,))[-1]
    return Vim(
        dict(channels=converted.channels[0], depth=converted.depths[0]),
        img_size=math.isqrt(positions - 1) * patch_size,
        patch_size=patch_size,
    )


def build_backbone(converted: ConvertedCheckpoint) -> nn.Module:
    """The backbone that the converted weights say they are for."""
    if converted.model == 'Vim':
        return build_vim(converted)
    arch = dict(channels=converted.channels, depths=converted.depths)
    if converted.model == 'VMamba':
        return VMamba(arch)
    return EfficientVMamba(arch, block_types=converted.block_types)


def check_fit(converted: ConvertedCheckpoint, target: str) -> None:
    """Compare every key and shape with the model that is to load them."""
    with torch.device('meta'):
        model = build_backbone(converted)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    if target == 'classifier':
        shapes = {f'backbone.{k}': v for k, v in shapes.items()}
        fc = converted.state_dict.get('head.fc.weight')
        classes = 0 if fc is None else fc.shape[0]
        shapes['head.fc.weight'] = (classes, converted.channels[-1])
        shapes['head.fc.bias'] = (classes,)
    given = {k: tuple(v.shape) for k, v in converted.state_dict.items()}
    problems = [f'missing: {k} {shapes[k]}' for k in shapes if k not in given]
    problems += [f'unknown: {k} {given[k]}' for k in given if k not in shapes]
    problems += [
        f'shape: {k} is {given[k]}, must be {shapes[k]}'
        for k in shapes
        if k in given and given[k] != shapes[k]
    ]
    if problems:
        raise ValueError(
            f'{len(problems)} weights do not fit:\n' + '\n'.join(problems)
        )


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    target: str = 'classifier',
    ema: bool = False,
    arch: str | None = None,
) -> ConvertedCheckpoint:
    """Read, translate, check and write one checkpoint.

    Args:
        source: A released file.
        destination: File to write, by safetensors if its name ends so.
        target: 'classifier' for mmpretrain's, whose backbone the other hosts
            load with ``prefix='backbone.'``, or 'backbone'.
        ema: Whether to take the averaged weights.
        arch: Arch that the weights must have; without it any.

    Raises:
        ValueError: If the source cannot be read safely, is not a released
            checkpoint, does not fit the model, or is of another arch.
        ImportError: If safetensors is to be written and not installed.
    """
    source, destination = Path(source), Path(destination)
    weights = select_weights(read_checkpoint(source), ema)
    converted = convert_released(weights, target)
    found = arch_name(converted)
    if arch is not None and found != arch:
        raise ValueError(
            f'{source} holds {found or "no published arch"} (channels '
            f'{converted.channels}, depths {converted.depths}), not {arch!r}'
        )
    check_fit(converted, target)
    meta = dict(
        model=converted.model,
        arch=found
        or dict(channels=converted.channels, depths=converted.depths),
        block_types=converted.block_types,
        source=source.name,
        ema=ema,
    )
    write_weights(destination, converted.state_dict, meta)
    return converted


def write_weights(
    path: Path, state_dict: Mapping[str, Tensor], meta: Mapping
) -> None:
    """Write a checkpoint, as safetensors where the name ends so.

    A file of safetensors holds ``meta`` as JSON, under 'evmamba_mm' of its
    metadata.

    Raises:
        ImportError: If safetensors is to be written and not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != '.safetensors':
        with written_whole(path) as part:
            torch.save(dict(meta=meta, state_dict=state_dict), part)
        return
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            f'{path} cannot be written without safetensors: '
            'pip install safetensors'
        ) from error
    tensors = {key: value.contiguous() for key, value in state_dict.items()}
    with written_whole(path) as part:
        save_file(
            tensors, part, dict(format='pt', evmamba_mm=json.dumps(meta))
        )
