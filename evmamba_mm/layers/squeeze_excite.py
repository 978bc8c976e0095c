"""Channel attention of the two block types.

Shape letters: B batch, H W map, C channels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .linear import init_linear


class SqueezeExcite(nn.Module):
    """Channel attention on a channels-last map (B, H, W, C).

    The gate is computed from the normalised map and applied to the map as it
    came. One such module serves both branches of an EVSS block.

    Args:
        channels: C.
        reduce_ratio: Hidden width over C, rounded down.

    Source: SENet (arXiv:1709.01507), in the form of the released model.
    """

    def __init__(self, channels: int, reduce_ratio: float = 0.125) -> None:
        super().__init__()
        hidden = max(1, int(channels * reduce_ratio))
        self.norm = nn.LayerNorm(channels)
        self.global_reduce = init_linear(channels, hidden)
        self.act = nn.GELU()
        self.channel_select = init_linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        pooled = self.norm(x).mean((1, 2), keepdim=True)
        gate = self.channel_select(self.act(self.global_reduce(pooled)))
        return x * gate.sigmoid()


class ConvSqueezeExcite(nn.Module):
    """Channel attention on a channels-first map (B, C, H, W).

    The form inside the inverted residual block: no normalisation, ReLU.

    Args:
        channels: C.
        hidden: Width between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.act = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        pooled = F.adaptive_avg_pool2d(x, 1)
        gate = self.conv_expand(self.act(self.conv_reduce(pooled)))
        return x * gate.sigmoid()
