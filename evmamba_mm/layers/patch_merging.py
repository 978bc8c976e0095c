"""Downsampling between stages.

Shape letters: B batch, H W map, C channels.
"""

from torch import Tensor, nn

from ..ops import merge_layer_norm, merge_neighbours
from .layer_norm import LayerNorm
from .linear import init_linear
from .plain import is_plain_and_unseen
from .prepared import InferenceWeight, apply_linear


class PatchMerging(nn.Module):
    """Concatenate 2x2 neighbours and reduce them, (B, H, W, C) channels last.

    Odd sizes are padded with zeros on the right and at the bottom. The
    neighbours stand in the order (0, 0), (1, 0), (0, 1), (1, 1) as (row,
    column).

    Args:
        in_channels: C.
        out_channels: Channels of the result.

    Source: Swin Transformer (arXiv:2103.14030).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * in_channels)
        self.reduction = init_linear(4 * in_channels, out_channels, bias=False)

    def inference_weights(self) -> list[InferenceWeight]:
        """Weights that an inference reads in another form."""
        return [InferenceWeight(self.reduction)]

    def training_weights(self) -> list[nn.Linear]:
        """Layers whose weights a training casts together."""
        return [self.reduction]

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, H, W, C) into (B, ceil(H / 2), ceil(W / 2), out)."""
        norm = self.norm
        if is_plain_and_unseen(norm, LayerNorm):
            x = merge_layer_norm(x, norm.weight, norm.bias, norm.eps)
        else:
            x = norm(merge_neighbours(x))
        return apply_linear(self.reduction, x)
