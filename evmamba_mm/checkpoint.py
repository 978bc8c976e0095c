"""Keys of the released checkpoints, translated; dict to dict, no model needed.

The released model counts modules without parameters, so its stages are
``layers.S.blocks.N`` when they scan and ``layers.S.N`` (from 1) when they
convolve, and a merging is ``downsample`` or the number after the blocks'.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# In the order they are tried; the first that matches a key renames it.
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'patch_embed\.0\.(.+)', r'patch_embed.conv.\1'),
        (r'patch_embed\.2\.(.+)', r'patch_embed.norm.\1'),
        (
            r'layers\.(\d+)\.blocks\.(\d+)\.op\.(.+)',
            r'stages.\1.\2.mixer.\3',
        ),
        (r'layers\.(\d+)\.blocks\.(\d+)\.(.+)', r'stages.\1.\2.\3'),
        (
            r'layers\.(\d+)\.(?:downsample|\d+)\.(reduction\..+|norm\..+)',
            r'downsamples.\1.\2',
        ),
    )
)
_INVERTED_RESIDUAL = re.compile(r'layers\.(\d+)\.(\d+)\.((?:conv|se).+)')
_HEAD = {
    'classifier.head.weight': 'head.fc.weight',
    'classifier.head.bias': 'head.fc.bias',
}
_NORM = re.compile(r'classifier\.norm\.(weight|bias)')


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A translated state dict and what it says of its model.

    Args:
        state_dict: Weights under this package's names.
        channels: Channels of each stage.
        depths: Blocks of each stage.
        block_types: Block of each stage, as the backbone names them.
        left_out: Source keys that have no place in the target.
    """

    state_dict: dict[str, Tensor]
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    block_types: tuple[str, ...]
    left_out: tuple[str, ...] = field(default=())


def strip_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove every leading ``module.`` that wrappers put before the keys.

    Raises:
        ValueError: If two keys become one.
    """
    stripped = {}
    for key, value in state_dict.items():
        name = re.sub(r'^(module\.)+', '', key)
        if name in stripped:
            raise ValueError(
                f'{name!r} is there twice once the prefix module. is removed'
            )
        stripped[name] = value
    return stripped


def _rename(key: str, last_stage: int) -> str | None:
    match = _INVERTED_RESIDUAL.fullmatch(key)
    if match:
        stage, block, rest = match.groups()
        return f'stages.{stage}.{int(block) - 1}.{rest}'
    match = _NORM.fullmatch(key)
    if match:
        return f'norm{last_stage}.{match[1]}'
    for pattern, replacement in _RENAMES:
        if pattern.fullmatch(key):
            return pattern.sub(replacement, key)
    return None


def _describe(
    backbone: Mapping[str, Tensor],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Channels, depths and block types, read off keys and shapes."""
    depths: dict[int, int] = {}
    for key in backbone:
        match = re.match(r'stages\.(\d+)\.(\d+)\.', key)
        if match:
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
    stages = sorted(depths)
    if not stages or stages != list(range(len(stages))):
        raise ValueError(
            f'the stages must be 0, 1, 2, ... without a gap, found {stages}'
        )
    channels, types = [], []
    for stage in stages:
        merge = backbone.get(f'downsamples.{stage - 1}.reduction.weight')
        source = (
            backbone.get('patch_embed.conv.weight') if not stage else merge
        )
        if source is None:
            raise ValueError(f'the weights before stage {stage} are missing')
        channels.append(source.shape[0])
        if f'stages.{stage}.0.conv_pw.0.weight' in backbone:
            types.append('inverted_residual')
        elif f'stages.{stage}.0.se.norm.weight' in backbone:
            types.append('evss')
        else:
            types.append('es2d')
    return tuple(channels), tuple(depths[s] for s in stages), tuple(types)


def convert_released(
    state_dict: Mapping[str, Tensor], target: str = 'classifier'
) -> ConvertedCheckpoint:
    """Translate a released EfficientVMamba state dict.

    Args:
        state_dict: Weights under the released names, ``module.`` prefixes
            allowed.
        target: 'classifier' for mmpretrain's ImageClassifier (``backbone.``
            and ``head.fc.``) or 'backbone' for the bare backbone. The
            classifier's norm becomes the last stage's output norm in both.

    Raises:
        ValueError: If the target is unknown, or a key is not one of the
            released model's.
    """
    if target not in ('classifier', 'backbone'):
        raise ValueError(
            f"target must be 'classifier' or 'backbone', got {target!r}"
        )
    source = strip_wrappers(state_dict)
    numbers = [re.match(r'layers\.(\d+)\.', key) for key in source]
    last_stage = max((int(m[1]) for m in numbers if m), default=-1)
    backbone = {}
    unknown, left_out, head = [], [], {}
    for key, value in source.items():
        name = _rename(key, last_stage)
        if name is not None:
            backbone[name] = value
        elif key not in _HEAD:
            unknown.append(key)
        elif target == 'classifier':
            head[_HEAD[key]] = value
        else:
            left_out.append(key)
    if unknown or not backbone:
        raise ValueError(
            'this is not a released EfficientVMamba checkpoint: '
            f'{len(unknown)} of {len(source)} keys are unknown, such as '
            f'{unknown[:5]}'
        )
    description = _describe(backbone)
    if target == 'classifier':
        backbone = {f'backbone.{k}': v for k, v in backbone.items()} | head
    return ConvertedCheckpoint(backbone, *description, tuple(left_out))
