"""The models under names of timm. Importing this registers them.

import timm, evmamba_mm.hub.timm_models
model = timm.create_model('evmamba_tiny', pretrained=True, num_classes=10)
backbone = timm.create_model('evmamba_tiny', features_only=True)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import FeatureInfo, register_model
from torch import Tensor, nn

from ..backbones import EfficientVMamba
from .loading import SCHEME

NUM_CLASSES = 1000
# timm adds the names of the models.
__all__ = ['Classifier', 'Features']


def _data_config(arch: str) -> dict[str, Any]:
    """What timm.data reads of a model, and what names its parts."""
    return dict(
        architecture=f'evmamba_{arch}',
        input_size=(3, 224, 224),
        num_classes=NUM_CLASSES,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        interpolation='bicubic',
        crop_pct=0.875,
        pool_size=(7, 7),
        first_conv='backbone.patch_embed.conv',
        classifier='head.fc',
    )


class Features(EfficientVMamba):
    """The backbone as timm's ``features_only``: a list of feature maps."""

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, strides and modules of the outputs."""
        info = EfficientVMamba.feature_info.fget(self)
        return FeatureInfo(info, tuple(range(len(info))))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps of images (B, C, H, W), each normalised."""
        return [*super().forward(image)]


class Classifier(nn.Module):
    """A backbone and a head, with what timm asks of a model.

    The keys are those of mmpretrain's classifiers.

    Args:
        arch: As of :class:`evmamba_mm.EfficientVMamba`.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: 'avg', or '' for none.
        drop_rate: Dropout before the head.
        drop_path_rate: As of the backbone.
    """

    def __init__(
        self,
        arch: str = 'tiny',
        num_classes: int = NUM_CLASSES,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = EfficientVMamba(
            arch, in_chans, drop_path_rate=drop_path_rate
        )
        (self.num_features,) = self.backbone.channels
        self.head_hidden_size = self.num_features
        self.num_classes = num_classes
        self.head = ClassifierHead(
            self.num_features, num_classes, global_pool, drop_rate
        )

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None
    ) -> None:
        """Put a new last layer in the place of the old one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the function from names to layers, for layer-wise decay."""
        return lambda name: self.backbone.get_layer_depth(name, 'backbone.')[0]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether the backward recomputes the blocks."""
        self.backbone.with_cp = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, normalised."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or what the last layer reads."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def _load(
    model: nn.Module, arch: str, overlay: Mapping[str, Any] | None
) -> None:
    """Load a file, or the released weights, but for a head of other size.

    Raises:
        ValueError: If the file lacks weights or has others.
    """
    file = (overlay or {}).get('file') or f'{SCHEME}{arch}'
    loaded = CheckpointLoader.load_checkpoint(file, 'cpu')
    weights = loaded.get('state_dict', loaded)
    fresh = 'head.'
    if isinstance(model, Features):
        own = 'backbone.'
        # A classifier has the last norm alone.
        fresh = 'norm'
        if any(key.startswith(own) for key in weights):
            weights = {
                key.removeprefix(own): value
                for key, value in weights.items()
                if key.startswith(own)
            }
    elif model.num_classes != len(weights.get('head.fc.bias', ())):
        weights = {k: v for k, v in weights.items() if k[:5] != 'head.'}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [key for key in missing if not key.startswith(fresh)]
    if missing or unexpected:
        raise ValueError(
            f'{file} does not hold the weights of evmamba_{arch}: '
            f'{len(missing)} missing {missing[:3]}, '
            f'{len(unexpected)} unknown {unexpected[:3]}'
        )


def _register(arch: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: str | None = None,
        features_only: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        num_classes: int = NUM_CLASSES,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> nn.Module:
        if features_only:
            model = Features(
                arch, in_chans, out_indices, drop_path_rate=drop_path_rate
            )
        else:
            model = Classifier(
                arch,
                num_classes,
                in_chans,
                global_pool,
                drop_rate,
                drop_path_rate,
            )
        model.pretrained_cfg = model.default_cfg = _data_config(arch)
        if pretrained:
            _load(model, arch, pretrained_cfg_overlay)
        return model

    create.__name__ = create.__qualname__ = f'evmamba_{arch}'
    return register_model(create)


evmamba_atto = _register('atto')
evmamba_tiny = _register('tiny')
evmamba_small = _register('small')
evmamba_base = _register('base')
