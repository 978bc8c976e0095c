"""Colour operations of RandAugment on a batch, as mmcv computes them.

A function of tables takes a magnitude for each image and returns what becomes
of each value. The others take images (B, 3, H, W) in uint8, in the order BGR,
and their magnitudes (B,), and return new images. An image's result does not
depend on the others of its batch.

Shape letters: B images, H W size, V the 256 values of a channel.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Of OpenCV's conversion to grey, for B, G and R, in units of 2^-15.
GREY_WEIGHTS = (3735, 19235, 9798)
VALUES = np.arange(256)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replaces each value by its cell in the tables.

    Args:
        images: (B, 3, H, W) in uint8.
        tables: (B, 3, 256) or (B, 1, 256), of any type; fractions are cut
            off.
    """
    tables = tables.clamp(0, 255).to(torch.uint8).expand(-1, 3, -1)
    rows = torch.arange(3 * len(images), device=images.device)
    index = images.int() + 256 * rows.view(-1, 3, 1, 1)
    return tables.reshape(-1)[index]


def _values(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _each(magnitudes: Tensor, dims: int) -> Tensor:
    return magnitudes.view(-1, *[1] * (dims - 1))


def auto_contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Stretches each channel to 0..255."""
    low = images.amin((2, 3))[..., None].double()
    high = images.amax((2, 3))[..., None].double()
    scale = 255 / (high - low)
    tables = _values(images) * scale - low * scale
    tables = torch.where(high > low, tables, _values(images))
    return look_up(images, tables)


def histograms(images: Tensor) -> Tensor:
    """Counts (B, 3, V) of each value in each channel."""
    index = images.flatten(2).long()
    counts = index.new_zeros(*index.shape[:2], 256)
    return counts.scatter_add_(2, index, torch.ones_like(index))


def equalize(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Makes the values of each channel equally frequent."""
    counts = histograms(images)
    sums = counts.cumsum(2)
    # Of the highest value that occurs.
    last = counts.gather(2, images.amax((2, 3))[..., None].long())
    step = (sums[..., -1:] - last) // 255
    filled = (sums + step // 2) // step.clamp(min=1)
    tables = F.pad(filled[..., :-1], (1, 0))
    return look_up(images, torch.where(step > 0, tables, _values(images)))


def invert(magnitudes: np.ndarray) -> np.ndarray:
    """Tables (B, V) that take every value from 255."""
    return np.tile(255 - VALUES, (len(magnitudes), 1))


def posterize(magnitudes: np.ndarray) -> np.ndarray:
    """Tables (B, V) that keep the highest bits, so many, rounded up."""
    # No bit is left from 8 shifts on.
    shifts = (8 - np.ceil(magnitudes)).clip(0, 8).astype(int)[:, None]
    return VALUES >> shifts << shifts


def solarize(magnitudes: np.ndarray) -> np.ndarray:
    """Tables (B, V) that invert the values from a threshold on."""
    return np.where(VALUES < magnitudes[:, None], VALUES, 255 - VALUES)


def solarize_add(magnitudes: np.ndarray, threshold: float = 128) -> np.ndarray:
    """Tables (B, V) that add to the values below a threshold."""
    raised = VALUES + magnitudes[:, None]
    return np.where(VALUES < threshold, raised, VALUES)


def brightness(magnitudes: np.ndarray) -> np.ndarray:
    """Tables (B, V) that blend with black."""
    factor = (1 + magnitudes).astype(np.float32)
    # In the precision of OpenCV, whose results are cut off too.
    return VALUES.astype(np.float32) * factor[:, None]


def grey(images: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) in int32, as OpenCV rounds them."""
    blue, green, red = images.int().unbind(1)
    b, g, r = GREY_WEIGHTS
    return ((b * blue + g * green + r * red + (1 << 14)) >> 15)[:, None]


def saturation(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blends with the grey image; a magnitude of 0 changes nothing."""
    factor = 1 + _each(magnitudes, 4).float()
    blended = images * factor + grey(images) * (1 - factor)
    return blended.round_().clamp_(0, 255).to(torch.uint8)


def contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blends with the mean of the grey image."""
    factor = 1 + _each(magnitudes, 3).float()
    mean = grey(images).double().mean((1, 2, 3)).round()
    mean = _each(mean, 3).float()
    return look_up(images, _values(images) * factor + mean * (1 - factor))


def sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blends with the image smoothed over 3x3 pixels."""
    factor = 1 + _each(magnitudes, 4).float()
    # The borders are mirrored: dcb|abcd, and a lone row or column repeated.
    around = images.float()
    for sides, axis in (((1, 1, 0, 0), 3), ((0, 0, 1, 1), 2)):
        mode = 'reflect' if images.shape[axis] > 1 else 'replicate'
        around = F.pad(around, sides, mode=mode)
    sums = (9 * F.avg_pool2d(around, 3, stride=1)).round_()
    sums += 4 * images.int()
    smooth = (sums / 13).round_()
    blended = images * factor + smooth * (1 - factor)
    return blended.clamp_(0, 255).to(torch.uint8)
