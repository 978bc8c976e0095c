"""LayerNorm by the package's own operation."""

from torch import Tensor, nn

from ..ops import layer_norm, layer_norm_branches
from .plain import is_plain_and_unseen


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


def norm_branches(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normed tokens for two branches, and the tokens for a third.

    Args:
        norm: The norm, most often a :class:`LayerNorm`.
        x: Tokens (..., C).
    """
    if is_plain_and_unseen(norm, LayerNorm):
        return layer_norm_branches(x, norm.weight, norm.bias, norm.eps)
    normed = norm(x)
    return normed, normed, x
