"""The stem: patches to tokens.

Shape letters: B batch, H W image, C channels, P patch size.
"""

from torch import Tensor, nn

from ..ops import patch_layer_norm
from .image import check_image
from .layer_norm import LayerNorm
from .plain import is_plain_and_unseen
from .prepared import InferenceWeight, ready_or_own


class PatchEmbed(nn.Module):
    """Non-overlapping convolution and LayerNorm, from NCHW to NHWC.

    Args:
        in_channels: Channels of the image.
        channels: C.
        patch_size: P, the kernel and the stride.
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: int = 4
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.conv = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.norm = LayerNorm(channels)

    def inference_weights(self) -> list[InferenceWeight]:
        """Weights that an inference reads in another form."""
        return [InferenceWeight(self.conv)]

    def forward(self, image: Tensor) -> Tensor:
        """Turn (B, in_channels, H, W) into (B, H // P, W // P, C).

        Raises:
            ValueError: If the image has other channels, is smaller than one
                patch, is not of a floating dtype, or on another device.
        """
        check_image(image, self.conv)
        norm = self.norm
        if not (
            is_plain_and_unseen(self.conv, nn.Conv2d)
            and is_plain_and_unseen(norm, LayerNorm)
        ):
            return norm(self.conv(image).permute(0, 2, 3, 1))
        weight, bias = ready_or_own(self.conv)
        return patch_layer_norm(
            image, weight, bias, norm.weight, norm.bias, norm.eps
        )
