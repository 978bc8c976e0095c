"""Converts the keys of released checkpoints, from dict to dict.

EfficientVMamba numbers modules without parameters too: blocks are
``layers.S.blocks.N`` in stages that scan and ``layers.S.N`` (from 1) in
stages that convolve, and a patch merging is ``downsample`` or the number
after the blocks. VMamba's first version has ``layers.S.blocks.N`` with
``ln_1`` and ``self_attention`` inside. Vim has this package's names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class _Layout:
    """How a released model names its weights.

    Args:
        renames: Pattern and replacement of the backbone's keys, in the order
            they are tried; the first that matches a whole key renames it.
        head: Name of the classifier's last layer.
        norm: Name of the norm before it, where it becomes an output norm.
        mark: Pattern of a key that no other layout has.
    """

    renames: tuple[tuple[str, str], ...]
    head: str
    norm: str | None
    mark: str


_BLOCK = r'layers\.(\d+)\.blocks\.(\d+)'
# The first layout whose mark is there is taken.
_LAYOUTS = {
    'VMamba': _Layout(
        renames=(
            (r'patch_embed\.proj\.(.+)', r'patch_embed.conv.\1'),
            (r'patch_embed\.norm\.(.+)', r'patch_embed.norm.\1'),
            (_BLOCK + r'\.ln_1\.(.+)', r'stages.\1.\2.norm.\3'),
            (_BLOCK + r'\.self_attention\.(.+)', r'stages.\1.\2.mixer.\3'),
            (
                r'layers\.(\d+)\.downsample\.(reduction\..+|norm\..+)',
                r'downsamples.\1.\2',
            ),
        ),
        head='head',
        norm='norm',
        mark=_BLOCK + r'\.(ln_1|self_attention)\..+',
    ),
    'Vim': _Layout(
        renames=(
            (
                r'(cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|'
                r'norm_f\.weight|layers\.\d+\.(norm\.weight|mixer\.(A_log|'
                r'A_b_log|D|D_b|((in|x|dt|out)_proj|conv1d)(_b)?\.(weight|'
                r'bias))))',
                r'\1',
            ),
        ),
        head='head',
        norm=None,
        mark=r'layers\.\d+\.mixer\..+',
    ),
    'EfficientVMamba': _Layout(
        renames=(
            (r'patch_embed\.0\.(.+)', r'patch_embed.conv.\1'),
            (r'patch_embed\.2\.(.+)', r'patch_embed.norm.\1'),
            (_BLOCK + r'\.op\.(.+)', r'stages.\1.\2.mixer.\3'),
            (_BLOCK + r'\.(.+)', r'stages.\1.\2.\3'),
            (
                r'layers\.(\d+)\.(?:downsample|\d+)\.(reduction\..+|norm\..+)',
                r'downsamples.\1.\2',
            ),
        ),
        head='classifier.head',
        norm='classifier.norm',
        mark=r'.*',
    ),
}
_STAGE = re.compile(r'layers\.(\d+)\.')
_INVERTED_RESIDUAL = re.compile(r'layers\.(\d+)\.(\d+)\.((?:conv|se).+)')


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A converted state dict and a description of its model.

    Args:
        state_dict: Weights under this package's names.
        channels: Channels of each stage.
        depths: Blocks of each stage.
        block_types: Block of each stage, as the backbone names them; Vim's
            only stage is 'vim'.
        left_out: Source keys that have no place in the target.
        model: Name of the backbone that the weights are for.
    """

    state_dict: dict[str, Tensor]
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    block_types: tuple[str, ...]
    left_out: tuple[str, ...] = field(default=())
    model: str = 'EfficientVMamba'


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
                f'key {name!r} occurs twice without the prefix module.'
            )
        stripped[name] = value
    return stripped


def is_released(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a released classifier or backbone.

    Vim's backbone has the released names here too, so that it takes Vim's
    classifier to be told apart.
    """
    keys = [re.sub(r'^(module\.)+', '', str(key)) for key in state_dict]
    model = _released_model(dict.fromkeys(keys))
    if model == 'Vim':
        return 'head.weight' in keys
    head = _LAYOUTS[model].head
    rest = [key for key in keys if not key.startswith(f'{head}.')]
    has_stages = any(_STAGE.match(key) for key in rest)
    return has_stages and all(_rename(key, model, 0) for key in rest)


def _released_model(keys: Mapping[str, Tensor]) -> str:
    """Name of the model whose layout the keys follow."""
    for model, layout in _LAYOUTS.items():
        if any(re.fullmatch(layout.mark, key) for key in keys):
            return model
    return 'EfficientVMamba'


def _rename(key: str, model: str, last_stage: int) -> str | None:
    layout = _LAYOUTS[model]
    match = _INVERTED_RESIDUAL.fullmatch(key)
    if match and model == 'EfficientVMamba':
        stage, block, rest = match.groups()
        return f'stages.{stage}.{int(block) - 1}.{rest}'
    name, _, leaf = key.rpartition('.')
    if layout.norm is not None and name == layout.norm:
        return f'norm{last_stage}.{leaf}'
    for pattern, replacement in layout.renames:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None


def _counted(keys: Mapping[str, Tensor], pattern: str) -> dict[int, int]:
    """Highest second number plus one, for each first number of a pattern."""
    counts: dict[int, int] = {}
    for key in keys:
        match = re.match(pattern, key)
        if match:
            first, second = int(match[1]), int(match[2])
            counts[first] = max(counts.get(first, 0), second + 1)
    return counts


def _describe_vim(
    backbone: Mapping[str, Tensor],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    if 'cls_token' not in backbone:
        raise ValueError('the class token, cls_token, is missing')
    numbers = {int(k.split('.')[1]) for k in backbone if k[:7] == 'layers.'}
    channels = backbone['cls_token'].shape[-1]
    return (channels,), (max(numbers) + 1,), ('vim',)


def _block_type(model: str, backbone: Mapping[str, Tensor], stage: int) -> str:
    if model == 'VMamba':
        return 'ss2d'
    if f'stages.{stage}.0.conv_pw.0.weight' in backbone:
        return 'inverted_residual'
    if f'stages.{stage}.0.se.norm.weight' in backbone:
        return 'evss'
    return 'es2d'


def _describe(
    model: str, backbone: Mapping[str, Tensor]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
    """Channels, depths and block types, read off keys and shapes."""
    if model == 'Vim':
        return _describe_vim(backbone)
    depths = _counted(backbone, r'stages\.(\d+)\.(\d+)\.')
    stages = sorted(depths)
    if not stages or stages != list(range(len(stages))):
        raise ValueError(
            f'the stages must be 0, 1, 2, ... without a gap, found {stages}'
        )
    channels = []
    for stage in stages:
        merge = backbone.get(f'downsamples.{stage - 1}.reduction.weight')
        source = (
            backbone.get('patch_embed.conv.weight') if not stage else merge
        )
        if source is None:
            raise ValueError(f'the weights before stage {stage} are missing')
        channels.append(source.shape[0])
    types = tuple(_block_type(model, backbone, stage) for stage in stages)
    return tuple(channels), tuple(depths[s] for s in stages), types


def convert_released(
    state_dict: Mapping[str, Tensor], target: str = 'classifier'
) -> ConvertedCheckpoint:
    """Convert a released EfficientVMamba, VMamba or Vim state dict.

    The keys identify the model. VMamba is the first version, without
    feed-forward layers; Vim the one with a class token among the patches.

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
    model = _released_model(source)
    head_name = _LAYOUTS[model].head
    numbers = [_STAGE.match(key) for key in source]
    last_stage = max((int(m[1]) for m in numbers if m), default=-1)
    backbone = {}
    unknown, left_out, head = [], [], {}
    for key, value in source.items():
        name = _rename(key, model, last_stage)
        if name is not None:
            backbone[name] = value
        elif key not in (f'{head_name}.weight', f'{head_name}.bias'):
            unknown.append(key)
        elif target == 'classifier':
            head[f'head.fc.{key.rpartition(".")[2]}'] = value
        else:
            left_out.append(key)
    if unknown or not backbone:
        raise ValueError(
            f'this is not a released {model} checkpoint: {len(unknown)} of '
            f'{len(source)} keys are unknown, such as {unknown[:5]}'
        )
    description = _describe(model, backbone)
    if target == 'classifier':
        backbone = {f'backbone.{k}': v for k, v in backbone.items()} | head
    return ConvertedCheckpoint(backbone, *description, tuple(left_out), model)
