"""Classifiers by name: ours, timm's, mmpretrain's, or a config's."""

from pathlib import Path

from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..backbones import ARCHS
from ..config_files import read_config

SOURCES = ('EfficientVMamba', 'timm', 'mmpretrain', 'config')
EXAMPLES = (
    'EfficientVMamba:tiny, timm:regnety_008, '
    'mmpretrain:resnet50_8xb32_in1k or config:FILE.py'
)


def split_name(name: str) -> tuple[str, str]:
    """Splits 'timm:regnety_008' into where a model is from and which it is.

    Raises:
        ValueError: If the name is not of this form, or the source or our
            arch is unknown.
    """
    source, _, which = name.partition(':')
    if source not in SOURCES or not which:
        raise ValueError(
            f'a model is named SOURCE:NAME, like {EXAMPLES}; got {name!r}'
        )
    if source == 'EfficientVMamba' and which not in ARCHS:
        raise ValueError(
            f'the arch of {name!r} must be one of {", ".join(ARCHS)}'
        )
    if source == 'config' and not Path(which).is_file():
        raise ValueError(f'{name!r}: there is no file {which!r}')
    return source, which


def build_classifier(name: str) -> nn.Module:
    """Build a classifier of 1000 classes with random weights.

    Its logits are (B, 1000) for images (B, 3, H, W).

    Raises:
        ValueError: If there is no such model.
        ImportError: If the package it is from is not installed.
    """
    source, which = split_name(name)
    if source == 'timm':
        return from_timm(which)
    import mmpretrain

    if source == 'mmpretrain':
        return mmpretrain.get_model(which, pretrained=False)
    if source == 'config':
        return from_config(which)
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='EfficientVMamba', arch=which),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=1000,
            in_channels=ARCHS[which].channels[-1],
        ),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model)


def from_timm(name: str) -> nn.Module:
    """Build a model of timm's.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If it has no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f'timm:{name} needs timm: pip install timm'
        ) from error
    if not timm.is_model(name):
        raise ValueError(
            f'timm {timm.__version__} has no model {name!r}; check the name, '
            'or get the newest by pip install -U timm'
        )
    return timm.create_model(name)


def from_config(path: str) -> nn.Module:
    """Build the model of a config file."""
    config = read_config(path)
    config.model.pop('init_cfg', None)
    config.model.backbone.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)
