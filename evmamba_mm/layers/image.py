"""Checks of the image that a backbone is given."""

import torch
from torch import Tensor, nn


def check_image(image: Tensor, conv: nn.Module) -> None:
    """Refuse an image that a patch embedding cannot read.

    Args:
        image: Must be (B, in_channels, H, W), at least as high and wide as
            the convolution's kernel with its padding, of a floating dtype and
            on its device.
        conv: The embedding's convolution. Another module in its place, such
            as an adapter, checks the shape itself.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(image, Tensor):
        raise ValueError(
            'the image must be a tensor (B, C, H, W), got '
            f'{type(image).__name__}'
        )
    if not image.is_floating_point():
        raise ValueError(
            f'the image must have a floating dtype, got {image.dtype}; '
            'normalise it first'
        )
    weight = next(conv.parameters(), None)
    # Weights without memory are offloaded, or nothing is computed at all.
    here = weight is None or weight.is_meta or weight.device == image.device
    if not here:
        raise ValueError(
            f'the image is on {image.device}, the backbone on '
            f'{weight.device}; move one of them'
        )
    if type(conv) is nn.Conv2d:
        # FSDP and DataParallel keep the parameters elsewhere.
        if weight is not None:
            _check_dtype(image, weight)
        _check_shape(image.shape, conv)


def _check_dtype(image: Tensor, weight: Tensor) -> None:
    if image.dtype == weight.dtype:
        return
    if not torch.is_autocast_enabled(image.device.type):
        raise ValueError(
            f'the image is in {image.dtype}, the backbone in {weight.dtype}; '
            'convert one of them, or use torch.autocast'
        )


def _check_shape(shape: torch.Size, conv: nn.Conv2d) -> None:
    if len(shape) != 4 or shape[1] != conv.in_channels:
        raise ValueError(
            f'the image must have shape (B, {conv.in_channels}, H, W), got '
            f'{tuple(shape)}'
        )
    if isinstance(conv.padding, str):
        return
    sides = zip(
        shape[2:], conv.kernel_size, conv.dilation, conv.padding, strict=True
    )
    for side, kernel, dilation, padding in sides:
        least = dilation * (kernel - 1) + 1 - 2 * padding
        if side < least:
            raise ValueError(
                f'the image must be at least {least} pixels high and wide, '
                f'got {shape[2]}x{shape[3]}'
            )
