"""What a backbone takes as an image."""

from torch import Tensor, nn


def check_image(image: Tensor, conv: nn.Conv2d) -> None:
    """Refuse an image that a patch embedding cannot read.

    Args:
        image: Must be (B, in_channels, H, W), at least one patch high and
            wide, of a floating dtype and on the convolution's device.
        conv: The embedding's convolution, as wide as its stride.

    Raises:
        ValueError: If it is not.
    """
    channels, patch_size = conv.in_channels, conv.stride[0]
    if image.dim() != 4 or image.shape[1] != channels:
        raise ValueError(
            f'the image must have shape (B, {channels}, H, W), got '
            f'{tuple(image.shape)}'
        )
    if min(image.shape[2:]) < patch_size:
        raise ValueError(
            f'the image must be at least {patch_size} pixels high and wide, '
            f'got {image.shape[2]}x{image.shape[3]}'
        )
    if not image.is_floating_point():
        raise ValueError(
            f'the image must have a floating dtype, got {image.dtype}; '
            'normalise it first'
        )
    if image.device != conv.weight.device:
        raise ValueError(
            f'the image is on {image.device}, the backbone on '
            f'{conv.weight.device}; move one of them'
        )
