"""Channel attention of the two block types.

Shape letters: B batch, C channels, H W feature map, E hidden channels.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import checked
from .layer_norm import LayerNorm, channels_last
from .linear import init_linear


class SqueezeExcite(nn.Module):
    """Channel attention on (B, C, H, W), whose gate starts with a LayerNorm.

    The gate is computed from the normalised feature map and applied to the
    unnormalised one. Both branches of an EVSS block share one module.

    Args:
        channels: C.
        reduce_ratio: E over C, rounded down.
        act: Makes the activation.

    Source: SENet (arXiv:1709.01507), in the form of the released model.
    """

    @checked
    def __init__(
        self,
        channels: int,
        reduce_ratio: float = 0.125,
        act: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        hidden = max(1, int(channels * reduce_ratio))
        self.norm = LayerNorm(channels)
        self.global_reduce = init_linear(channels, hidden)
        self.act = act()
        self.channel_select = init_linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        pooled = self.norm(channels_last(x)).mean((1, 2))
        gate = self.channel_select(self.act(self.global_reduce(pooled)))
        return x * gate.sigmoid()[:, :, None, None].to(x.dtype)


class ConvSqueezeExcite(nn.Module):
    """Channel attention on (B, C, H, W), whose gate starts with the mean.

    This is the form of the inverted residual block.

    Args:
        channels: C.
        hidden: E.
        act: Makes the activation.

    Source: SENet (arXiv:1709.01507).
    """

    @checked
    def __init__(
        self,
        channels: int,
        hidden: int,
        act: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.act = act()
        self.conv_expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        pooled = F.adaptive_avg_pool2d(x, 1)
        gate = self.conv_expand(self.act(self.conv_reduce(pooled)))
        return x * gate.sigmoid()
