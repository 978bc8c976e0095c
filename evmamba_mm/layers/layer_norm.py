"""LayerNorm of a map, and the two views that blocks change between.

Shape letters: B batch, C channels, H W map.
"""

from torch import Tensor, nn


def channels_last(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """View (B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W).

    The result has the dtype of the map: under autocast torch's own norm gives
    fp32, which would double what the following layers read.

    Args:
        channels: C.

    Source: Layer Normalization (arXiv:1607.06450).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel of (B, C, H, W)."""
        y = super().forward(channels_last(x))
        return channels_first(y).to(x.dtype)
