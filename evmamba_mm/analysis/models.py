"""Parameters and FLOPs of a model, as the tables of the paper count them."""

import contextlib
import functools
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.fileio import load as load_file
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..arguments import checked
from ..backbones import EfficientVMamba
from ..config_files import read_config as read_config_file
from .flops import count_flops

PROPOSALS = 1000
MASK_ROIS = 100
ROI_PROTOCOL = f', {PROPOSALS} proposals, {MASK_ROIS} mask RoIs'
# Parts of a model that neither parameters nor FLOPs depend on.
UNCOUNTED = ('data_preprocessor', 'train_cfg', 'init_cfg')


@dataclass(frozen=True)
class Protocol:
    """Size of the picture, and the protocol's name in the tables."""

    name: str
    height: int
    width: int


PROTOCOLS = {
    'mmpretrain': Protocol('224x224', 224, 224),
    'mmdet': Protocol('1280x800', 800, 1280),
    'mmseg': Protocol('512x2048', 512, 2048),
}


@dataclass(frozen=True)
class Count:
    """Counts of a config's model.

    Parameters of what is frozen from the start (the early stages of a ResNet
    detector) are in `params` and not in `trainable_params`.
    """

    protocol: str
    params: int
    trainable_params: int
    flops: int

    def text(self) -> str:
        """Return the numbers in four lines."""
        return (
            f'input: {self.protocol}\n'
            f'parameters: {self.params:,}\n'
            f'trainable parameters: {self.trainable_params:,}\n'
            f'FLOPs: {self.flops / 1e9:.4f} G, a multiply-add as one'
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the hosts from talking about models that nobody will train."""
    logger = MMLogger.get_current_instance()
    levels = {handler: handler.level for handler in logger.handlers}
    for handler in levels:
        handler.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for handler, level in levels.items():
            handler.setLevel(level)


_load_file_once = functools.cache(load_file)


@functools.cache
def read_config(path: Path) -> Config:
    """Read a config file; each is read once."""
    # mmengine reads every metafile of a host anew for each base of it.
    with mock.patch('mmengine.config.utils.load', _load_file_once):
        return read_config_file(path)


def build(cfg: Config) -> nn.Module:
    """Build a config's model with random weights, for inference."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    return revert_sync_batchnorm(model).eval()


class FixedRoIs:
    """Lets a detector run on a thousand proposals, wherever they lie.

    Which proposals a picture yields depends on its content, and so do the
    pyramid levels that they are taken from; how many there are does not, in
    the protocol. Counts what the heads are then given.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.seen = {}

    def install(self) -> None:
        """Put the fixed proposals in place of the real ones."""
        heads = self.model.roi_head
        self.model.rpn_head.predict = self.propose
        for kind in ('bbox', 'mask'):
            extractor = getattr(heads, f'{kind}_roi_extractor')
            extractor.forward = functools.partial(self.extract, extractor)
            getattr(heads, f'{kind}_head').register_forward_pre_hook(
                functools.partial(self.see, kind)
            )

    def propose(
        self, maps: tuple[Tensor, ...], samples: list, rescale: bool
    ) -> list[InstanceData]:
        """Run the RPN head and return as many proposals as are counted."""
        self.model.rpn_head(maps)
        return [InstanceData(bboxes=torch.zeros(PROPOSALS, 4))]

    def extract(
        self, extractor: nn.Module, maps: tuple[Tensor, ...], rois: Tensor
    ) -> Tensor:
        """Return features of regions without extracting them."""
        size = extractor.roi_layers[0].output_size
        return maps[0].new_zeros(len(rois), extractor.out_channels, *size)

    def see(self, kind: str, head: nn.Module, inputs: tuple) -> None:
        """Note how many regions a head is given."""
        self.seen[kind] = len(inputs[0])

    def check(self) -> None:
        """Check the numbers of regions.

        Raises:
            ValueError: If a head was given another number than is counted.
        """
        expected = dict(bbox=PROPOSALS, mask=MASK_ROIS)
        if self.seen != expected:
            raise ValueError(
                f'the heads must see {expected} regions, saw {self.seen}'
            )


def flops_of(model: nn.Module, protocol: Protocol) -> Counter:
    """Count the FLOPs of a model by operation, at the size of a protocol."""
    shape = (1, 3, protocol.height, protocol.width)
    if not hasattr(model, 'roi_head'):
        return count_flops(model, shape)
    rois = FixedRoIs(model)
    rois.install()
    counts = count_flops(model, shape)
    rois.check()
    return counts


@functools.cache
def _count_model(key: 'ModelKey') -> Count:
    cfg = key.cfg
    with quiet():
        model = build(cfg)
        protocol = PROTOCOLS[cfg.default_scope]
        parameters = list(model.parameters())
        rois = ROI_PROTOCOL if hasattr(model, 'roi_head') else ''
        return Count(
            protocol=protocol.name + rois,
            params=sum(p.numel() for p in parameters),
            trainable_params=sum(
                p.numel() for p in parameters if p.requires_grad
            ),
            flops=round(flops_of(model, protocol).total()),
        )


class ModelKey:
    """A config that equals any other of the same model."""

    def __init__(self, cfg: Config):
        self.cfg = cfg
        counted = {k: v for k, v in cfg.model.items() if k not in UNCOUNTED}
        self.text = f'{cfg.default_scope} {counted}'

    def __eq__(self, other: object) -> bool:
        return self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def count_config(path: str | Path) -> Count:
    """Count the model of a config file, at the size its toolbox is told by.

    224x224 in mmpretrain, 1280x800 in mmdet with 1000 proposals and 100
    regions for masks, 512x2048 in mmseg. Equal models are counted once.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config is of no known toolbox.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no config {str(path)!r}')
    with quiet():
        cfg = read_config(path)
    if cfg.get('default_scope') not in PROTOCOLS:
        raise ValueError(
            f'{path}: default_scope must be one of {", ".join(PROTOCOLS)}, '
            f'got {cfg.get("default_scope")!r}'
        )
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(
            f'{path}: model must be a dict, got {cfg.get("model")!r}'
        )
    return _count_model(ModelKey(cfg))


@checked
def count_backbone(arch: str, height: int = 224, width: int = 224) -> Count:
    """Count an EfficientVMamba backbone, without a head.

    Args:
        arch: Name of a size.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: If there is no such arch.
    """
    with quiet():
        model = EfficientVMamba(arch).eval()
        flops = count_flops(model, (1, 3, height, width)).total()
    params = sum(p.numel() for p in model.parameters())
    return Count(f'{width}x{height}', params, params, round(flops))
