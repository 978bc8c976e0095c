"""The stem and the block of Vim.

Shape letters: B batch, H W feature map, L length, C channels, P patch size.
"""

from torch import Tensor, nn

from ..arguments import checked
from .bi_mamba import BiMamba
from .drop_path import DropPath
from .image import check_image


class PatchTokens(nn.Module):
    """Non-overlapping convolution without a norm, from NCHW to NHWC.

    Args:
        in_channels: Channels of the image.
        channels: C.
        patch_size: P, the kernel and the stride.
    """

    @checked
    def __init__(
        self, in_channels: int, channels: int, patch_size: int = 16
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        deviation = (in_channels * patch_size**2) ** -0.5
        # Cut off at two deviations, a normal distribution keeps this share.
        deviation /= 0.87962566103423978
        nn.init.trunc_normal_(
            self.proj.weight,
            std=deviation,
            a=-2 * deviation,
            b=2 * deviation,
        )
        nn.init.zeros_(self.proj.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Turn (B, in_channels, H, W) into (B, H // P, W // P, C).

        Raises:
            ValueError: If the image has other channels, is smaller than one
                patch, is not of a floating dtype, or on another device.
        """
        check_image(image, self.proj)
        return self.proj(image).permute(0, 2, 3, 1)


class VimBlock(nn.Module):
    """Residual block of a bidirectional scan: ``x + drop(mixer(norm(x)))``.

    Args:
        channels: C.
        d_state: States of the scan.
        drop_path_rate: Share of samples that skip the block while training.
        backend: See :func:`evmamba_mm.ops.selective_scan`.

    Source: Vim (arXiv:2401.09417).
    """

    @checked
    def __init__(
        self,
        channels: int,
        d_state: int = 16,
        drop_path_rate: float = 0.0,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.mixer = BiMamba(channels, d_state, backend=backend)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, L, C) to (B, L, C)."""
        return x + self.drop_path(self.mixer(self.norm(x)))
