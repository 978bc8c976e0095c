"""The stem, from the image to the first feature map.

Shape letters: B batch, C channels, H W image, P patch size.
"""

from torch import Tensor, nn

from ..arguments import checked
from .image import check_image
from .layer_norm import LayerNorm2d


class PatchEmbed(nn.Module):
    """Non-overlapping convolution and LayerNorm.

    Args:
        in_channels: Channels of the image.
        channels: C.
        patch_size: P, the kernel and the stride.

    Source: Swin Transformer (arXiv:2103.14030).
    """

    @checked
    def __init__(
        self, in_channels: int, channels: int, patch_size: int = 4
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.norm = LayerNorm2d(channels)

    def forward(self, image: Tensor) -> Tensor:
        """Turn (B, in_channels, H, W) into (B, C, H // P, W // P).

        Raises:
            ValueError: If the image has other channels, is smaller than one
                patch, is not of a floating dtype, or on another device.
        """
        check_image(image, self.conv)
        return self.norm(self.conv(image))
