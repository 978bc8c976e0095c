"""The EVSS block: a scan branch and a convolution branch.

Shape letters: B batch, H W map, C channels.
"""

from torch import Tensor, nn

from .drop_path import DropPath
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

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


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
        self.norm = nn.LayerNorm(channels)
        self.mixer = mixer
        if fusion:
            self.conv_branch = ConvBranch(channels)
            self.se = SqueezeExcite(channels)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        n = self.norm(x)
        y = self.mixer(n)
        if self.fusion:
            y = self.se(y) + self.se(self.conv_branch(n))
        return x + self.drop_path(y)
