"""MobileNetV2's block with channel attention, the InRes of Eq. 7.

Shape letters: B batch, C channels, H W feature map.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ..arguments import checked
from .drop_path import DropPath
from .squeeze_excite import ConvSqueezeExcite


class InvertedResidual(nn.Module):
    """Inverted residual block on a feature map (B, C, H, W).

    ``x + drop_path(conv_pw2(se(conv_dw(conv_pw(x)))))``.

    Args:
        channels: C, in and out.
        expand_ratio: Inner width over C.
        squeeze_ratio: Hidden width of the channel attention over the inner
            width.
        drop_path_rate: Share of samples that skip the block while training.
        act: Makes the activation.

    Source: MobileNetV2 (arXiv:1801.04381) and EfficientVMamba's section 4.3.
    """

    @checked
    def __init__(
        self,
        channels: int,
        expand_ratio: int = 4,
        squeeze_ratio: float = 0.125,
        drop_path_rate: float = 0.0,
        act: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        inner = channels * expand_ratio
        self.conv_pw = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            act(),
        )
        self.conv_dw = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            act(),
        )
        hidden = max(1, int(inner * squeeze_ratio))
        self.se = ConvSqueezeExcite(inner, hidden, act)
        self.conv_pw2 = nn.Sequential(
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, C, H, W) to (B, C, H, W)."""
        y = self.conv_pw2(self.se(self.conv_dw(self.conv_pw(x))))
        return x + self.drop_path(y)
