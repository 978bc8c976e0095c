"""The EVSS block, a scan branch beside a convolution branch: Eq. 6.

Shape letters: B batch, C channels, H W feature map.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ..arguments import checked
from .drop_path import DropPath
from .layer_norm import LayerNorm2d
from .squeeze_excite import SqueezeExcite


class EVSSBlock(nn.Module):
    """Residual block around a mixer, with or without the fusion.

    With fusion ``x + drop_path(se(mixer(n)) + se(conv_branch(n)))``, where n
    is ``norm(x)`` and both branches share one ``se``. Without fusion
    ``x + drop_path(mixer(n))``.

    Args:
        channels: C.
        mixer: Module that maps (B, C, H, W) to (B, C, H, W).
        fusion: Whether there is a convolution branch with channel attention.
        drop_path_rate: Share of samples that skip the block while training.
        se_ratio: Hidden width of the channel attention over C.
        act: Makes the activation of the branch and of the channel attention.

    Source: EfficientVMamba (arXiv:2403.09977), section 4.2, with the sharing
    of the released weights.
    """

    @checked
    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        fusion: bool = True,
        drop_path_rate: float = 0.0,
        se_ratio: float = 0.125,
        act: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.norm = LayerNorm2d(channels)
        self.mixer = mixer
        if fusion:
            self.conv_branch = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                nn.BatchNorm2d(channels),
                act(),
                nn.Conv2d(channels, channels, 1),
            )
            self.se = SqueezeExcite(channels, se_ratio, act)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, C, H, W) to (B, C, H, W)."""
        n = self.norm(x)
        if not self.fusion:
            return x + self.drop_path(self.mixer(n))
        y = self.se(self.mixer(n)) + self.se(self.conv_branch(n))
        return x + self.drop_path(y)
