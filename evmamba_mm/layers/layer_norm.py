"""LayerNorm by the package's own operation."""

from torch import Tensor, nn

from ..ops import layer_norm


class LayerNorm(nn.LayerNorm):
    """LayerNorm of the last dimension, in the autocast dtype.

    torch's own gives fp32 under autocast, which doubles what every following
    operation reads.

    Args:
        channels: Size of the last dimension.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise tokens (..., C)."""
        return layer_norm(x, self.weight, self.bias, self.eps)
