"""Layer norms, and the two views that blocks change between.

Shape letters: B batch, C channels, H W feature map.
"""

import torch
from torch import Tensor, nn

from ..arguments import checked


def channels_last(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """View (B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


class LayerNorm(nn.LayerNorm):
    """LayerNorm of the last dimension, under autocast in the weight's dtype.

    Torch's own runs in fp32 under autocast on a GPU, but on a CPU in the
    dtype of the tokens, and sums the gradients of its parameters in it.

    Source: Layer Normalization (arXiv:1607.06450).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise tokens (..., C)."""
        if x.device.type == 'cpu' and torch.is_autocast_enabled('cpu'):
            x = x.float() if self.weight is None else x.to(self.weight.dtype)
        return super().forward(x)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of a feature map (B, C, H, W).

    The result has the dtype of the feature map: fp32, which the norm gives
    under autocast, would double what the following layers read.

    Args:
        channels: C.
    """

    @checked
    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel of (B, C, H, W)."""
        y = super().forward(channels_last(x))
        return channels_first(y).to(x.dtype)
