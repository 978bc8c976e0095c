"""Downsampling between stages.

Shape letters: B batch, C channels, H W feature map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import checked
from .layer_norm import LayerNorm2d, channels_first, channels_last
from .linear import init_linear


class PatchMerging(nn.Module):
    """Concatenate 2x2 neighbours, normalise and reduce them.

    Odd sizes are padded with zeros on the right and at the bottom. The
    neighbours stand in the order (0, 0), (1, 0), (0, 1), (1, 1) as (row,
    column).

    Args:
        in_channels: C.
        out_channels: Channels of the result.

    Source: Swin Transformer (arXiv:2103.14030).
    """

    @checked
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(4 * in_channels)
        self.reduction = init_linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, C, H, W) into (B, out, ceil(H / 2), ceil(W / 2))."""
        x = channels_last(x)
        # Not -(-side // 2): ONNX rounds negative quotients towards zero.
        height, width = ((side + 1) // 2 for side in x.shape[1:3])
        x = F.pad(
            x, (0, 0, 0, 2 * width - x.shape[2], 0, 2 * height - x.shape[1])
        )
        # With these sizes, a compiler or exporter may keep them symbolic.
        cells = x.reshape(x.shape[0], height, 2, width, 2, x.shape[3])
        x = cells.permute(0, 1, 3, 4, 2, 5).flatten(3)
        x = self.norm(channels_first(x))
        return channels_first(self.reduction(channels_last(x)))
