"""The EVSS block: a scan branch and a convolution branch.

Shape letters: B batch, H W map, C channels.
"""

from torch import Tensor, nn

from ..ops import scale_add
from .conv_norm import depthwise_norm_act, pointwise_conv
from .drop_path import DropPath
from .layer_norm import LayerNorm, norm_branches
from .prepared import InferenceWeight
from .squeeze_excite import SqueezeExcite


class ConvBranch(nn.Sequential):
    """Depthwise 3x3, BatchNorm, GELU and 1x1 on a channels-last map.

    Args:
        channels: C, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.BatchNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
        )

    def inference_weights(self) -> list[InferenceWeight]:
        """Weights that an inference reads in another form."""
        depthwise, norm, _, pointwise = self
        return [
            InferenceWeight(depthwise, norm, narrow=False),
            InferenceWeight(pointwise),
        ]

    def training_weights(self) -> list[nn.Module]:
        """Layers whose weights a training casts together."""
        return [self[-1]]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        depthwise, norm, _, pointwise = self
        x = depthwise_norm_act(x, depthwise, norm, 'gelu')
        return pointwise_conv(x, pointwise)


class EVSSBlock(nn.Module):
    """Residual block around a mixer, with or without the fusion.

    With fusion: ``x + drop(se(mixer(n)) + se(conv(n)))`` where n is the
    normalised x and one and the same ``se`` serves both branches. Without:
    ``x + drop(mixer(n))``.

    Args:
        channels: C.
        mixer: Module that maps (B, H, W, C) to (B, H, W, C).
        fusion: Whether there is a convolution branch with channel attention.
        drop_path_rate: Share of samples that skip the block while training.

    Source: EfficientVMamba (arXiv:2403.09977), section 4.2, with the sharing
    of the released weights.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        fusion: bool = True,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.norm = LayerNorm(channels)
        self.mixer = mixer
        if fusion:
            self.conv_branch = ConvBranch(channels)
            self.se = SqueezeExcite(channels)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        n, same, x = norm_branches(self.norm, x)
        y, scale = self.mixer(n), self.drop_path.sample_scale(x)
        if not self.fusion:
            return scale_add(x, y, scale=scale)
        local = self.conv_branch(same)
        # The gates of both maps, then the sum.
        return self.se.add_to(x, y, local, scale)
