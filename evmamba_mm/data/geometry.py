"""Warps, crops and flips of a batch, each image with its own numbers.

Shape letters: B images, H W size, O the pixels of a resized side.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .transfer import to_device


def rotations(degrees: np.ndarray, height: int, width: int) -> np.ndarray:
    """Matrices (B, 2, 3) of a clockwise rotation about the centre."""
    x, y = (width - 1) / 2, (height - 1) / 2
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first = [cos, sin, x - cos * x - sin * y]
    second = [-sin, cos, y + sin * x - cos * y]
    return np.stack([np.stack(first, -1), np.stack(second, -1)], -2)


def _identities(values: np.ndarray, row: int, column: int) -> np.ndarray:
    """Identities (B, 2, 3), from one cell of which the values are taken."""
    matrices = np.zeros((len(values), 2, 3))
    matrices[:, (0, 1), (0, 1)] = 1
    matrices[:, row, column] -= values
    return matrices


def shears(
    values: np.ndarray, height: int, width: int, direction: str
) -> np.ndarray:
    """Matrices (B, 2, 3) that move a pixel by a part of its other place."""
    row = ('horizontal', 'vertical').index(direction)
    return _identities(values, row, 1 - row)


def translations(
    values: np.ndarray, height: int, width: int, direction: str
) -> np.ndarray:
    """Matrices (B, 2, 3) that move each pixel by a part of the side."""
    row = ('horizontal', 'vertical').index(direction)
    return _identities(values * (width, height)[row], row, 2)


def warp(
    images: Tensor, matrices: Tensor, fill: Sequence[float], mode: str
) -> Tensor:
    """Takes each pixel from another place, as OpenCV's warpAffine does.

    Args:
        images: (B, 3, H, W) in uint8.
        matrices: (B, 2, 3), from (x, y, 1) of the result to the pixel
            (x, y) of the image.
        fill: Colour outside of the image.
        mode: 'nearest', 'bilinear' or 'bicubic'.
    """
    height, width = images.shape[2:]
    device = images.device
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    x = torch.arange(width, device=device, dtype=torch.float32)
    cells = matrices.float()[..., None, None].unbind(1)
    places = [
        row[:, 0] * x + row[:, 1] * y + row[:, 2].expand(-1, height, width)
        for row in cells
    ]
    # Pixel centres, from 0..size - 1 to -1..1 between the outer edges.
    grid = torch.stack(
        [
            (2 * place + 1) / size - 1
            for place, size in zip(places, (width, height), strict=True)
        ],
        -1,
    )
    colour = np.array(fill, dtype=np.float32).reshape(1, 3, 1, 1)
    colour = to_device(colour, device)
    # grid_sample fills with zeros.
    warped = F.grid_sample(
        images - colour, grid, mode, 'zeros', align_corners=False
    )
    return (warped + colour).round_().clamp_(0, 255).to(torch.uint8)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as Pillow has it."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def resize_weights(
    start: Tensor, length: Tensor, pixels: int, size: int
) -> Tensor:
    """Weights (B, O, pixels) that resize a part of each row of pixels.

    Antialiased and bicubic, equal to Pillow's for the part alone.

    Args:
        start: (B,), the first pixel of each part.
        length: (B,), its pixels.
        pixels: Of the whole row.
        size: O.
    """
    device = start.device
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / size
    wide = scale.clamp(min=1)
    out = torch.arange(size, device=device, dtype=torch.float32)[:, None]
    place = torch.arange(pixels, device=device, dtype=torch.float32)
    centre = (out + 0.5) * scale + start
    weights = _bicubic((place + 0.5 - centre) / wide)
    weights *= (place >= start) & (place < start + length)
    return weights / weights.sum(2, keepdim=True)


def crop_and_resize(
    images: Tensor, boxes: Tensor, size: tuple[int, int]
) -> Tensor:
    """Resizes a box of each image to one size, antialiased and bicubic.

    Args:
        images: (B, 3, H, W) in uint8.
        boxes: (B, 4) of top, left, height and width in pixels.
        size: Height and width of the result.
    """
    top, left, height, width = boxes.unbind(1)
    rows = resize_weights(top, height, images.shape[2], size[0])
    columns = resize_weights(left, width, images.shape[3], size[1])
    resized = images.float() @ columns.mT[:, None]
    # Pillow stores whole numbers between its two passes.
    resized = resized.round_().clamp_(0, 255)
    resized = rows[:, None] @ resized
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def draw_boxes(
    random: np.random.Generator,
    count: int,
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    attempts: int,
) -> np.ndarray:
    """Boxes (count, 4) as mmpretrain's RandomResizedCrop draws them.

    Args:
        random: Where chance comes from.
        count: Boxes.
        size: Height and width of the images.
        area: Least and most of the image.
        aspect: Least and most width over height, drawn by its logarithm.
        attempts: After which the centre is taken.
    """
    height, width = size
    shape = (count, max(attempts, 1))
    areas = random.uniform(*area, shape) * height * width
    aspects = np.exp(random.uniform(*map(math.log, aspect), shape))
    widths = np.round(np.sqrt(areas * aspects)).astype(int)
    heights = np.round(np.sqrt(areas / aspects)).astype(int)
    fits = (widths > 0) & (widths <= width)
    fits &= (heights > 0) & (heights <= height) & (attempts > 0)
    first = fits.argmax(1)[:, None]
    h = np.take_along_axis(heights, first, 1)[:, 0]
    w = np.take_along_axis(widths, first, 1)[:, 0]
    top = np.floor(random.random(count) * (height - h + 1))
    left = np.floor(random.random(count) * (width - w + 1))
    drawn = np.stack([top, left, h, w], 1)
    centre = _centre_box(height, width, aspect)
    return np.where(fits.any(1)[:, None], drawn, centre).astype(int)


def _centre_box(
    height: int, width: int, aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    h, w = height, width
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w
