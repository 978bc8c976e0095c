"""The configs of the paper's other rows, and what their names say."""

import copy
import functools
import re
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load as load_file

from .leaves import HOSTS, LEAVES, ROOT

PEERS = {
    path.stem: path
    for host in HOSTS
    for path in sorted((ROOT / 'configs' / host / 'peers').glob('*.py'))
}
GRAMMAR = re.compile(
    r'((?P<method>retinanet|mask-rcnn|upernet|upernet-mln)_)?'
    r'(?P<model>[a-z0-9]+(-[a-z0-9.]+)?)'
    r'(_(?P<neck>fpn))?'
    r'_(?P<gpus>\d+)xb(?P<images>\d+)'
    r'(?P<tricks>(-[a-z]+)*)'
    r'-(?P<schedule>\d+[xek])'
    r'_(?P<dataset>[a-z0-9]+)'
    r'(-(?P<height>\d+)x(?P<width>\d+))?'
)
# What is trained the same way, of this package's own configs. Classifiers
# are grouped as in Table 2.
RECIPES = {
    'retinanet': 'retinanet_evmamba-tiny_fpn_8xb2-1x_coco',
    'mask-rcnn 1x': 'mask-rcnn_evmamba-tiny_fpn_8xb2-amp-1x_coco',
    'mask-rcnn 3x': 'mask-rcnn_evmamba-tiny_fpn_8xb2-amp-ms-crop-3x_coco',
    'upernet': 'upernet_evmamba-tiny_4xb4-160k_ade20k-512x512',
    '128': 'evmamba-tiny_16xb128-amp-300e_in1k',
    '64': 'evmamba-base_16xb64-amp-300e_in1k',
}


def read_name(stem):
    """Fields of a name; fails on one against the grammar."""
    match = GRAMMAR.fullmatch(stem)
    if match is None:
        pytest.fail(f'{stem} does not follow the grammar of names')
    return match.groupdict()


def recipe_of(stem):
    """The config of this package that a peer is compared with."""
    name = read_name(stem)
    method = name['method']
    if method is None:
        return RECIPES[name['images']]
    if method == 'mask-rcnn':
        return RECIPES[f'{method} {name["schedule"]}']
    return RECIPES[method.removesuffix('-mln')]


_load_file_once = functools.cache(load_file)


@functools.cache
def _load(path):
    # mmengine reads every metafile of a host anew for each base of it.
    with mock.patch('mmengine.config.utils.load', _load_file_once):
        return Config.fromfile(path)


def load(stem):
    """A peer's or an own config, to be changed at will."""
    path = PEERS[stem] if stem in PEERS else LEAVES[stem]
    host = path.relative_to(ROOT / 'configs').parts[0]
    pytest.importorskip(host, reason=f'{host} is not installed')
    return copy.deepcopy(_load(path))


def without_weights(config):
    """The config without pretrained weights."""
    backbone = config.model.backbone
    # None would keep the mmdet backbones' own initialisation from running.
    backbone.pop('init_cfg', None)
    if config.model.get('pretrained') is not None:
        config.model.pretrained = None
    return config


def needed_packages(config):
    """Skips where a backbone's package is not installed."""
    kind = config.model.backbone.type
    if kind == 'TIMMBackbone':
        pytest.importorskip('timm', reason='timm is not installed')
    elif '.' in kind:
        host = kind.partition('.')[0]
        pytest.importorskip(host, reason=f'{host} is not installed')


def meta_device():
    """Parameters without memory; drop path's rates keep their values."""
    linspace = functools.partial(torch.linspace, device='cpu')
    return mock.patch('torch.linspace', linspace), torch.device('meta')
