"""Fills rectangles of a batch of images with noise, in one launch.

Shape letters: B images, H W size, K rectangles.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .augment import dense_images
from .common import launch

# Pixels of a program.
_PIXELS = 1024
# Image, top, left, bottom, right and seed.
_NUMBERS = tl.constexpr(6)


@triton.jit
def _value(noise, mean, std):
    """``noise * std + mean``, without its fraction, between 0 and 255."""
    value = tl.minimum(tl.maximum(noise * std + mean, 0.0), 255.0)
    return value.to(tl.int32)


@triton.jit
def _erase_kernel(
    images_ptr,
    boxes_ptr,
    height,
    width,
    channel_stride,
    pixel_stride,
    mean_b,
    mean_g,
    mean_r,
    std_b,
    std_g,
    std_r,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some pixels of a rectangle; each has random numbers of its own."""
    tiles = tl.cdiv(height * width, BLOCK)
    boxes_ptr += (tl.program_id(0) // tiles).to(tl.int64) * _NUMBERS
    first = tl.program_id(0) % tiles * BLOCK
    image = tl.load(boxes_ptr).to(tl.int64)
    top, left = tl.load(boxes_ptr + 1), tl.load(boxes_ptr + 2)
    bottom, right = tl.load(boxes_ptr + 3), tl.load(boxes_ptr + 4)
    seed = tl.load(boxes_ptr + 5)
    columns = right - left
    area = (bottom - top) * columns
    if first < area:
        pixel = first + tl.arange(0, BLOCK)
        place = (top + pixel // columns) * width + left + pixel % columns
        places = images_ptr + image * 3 * height * width + place * pixel_stride
        if NOISE == 'uniform':
            blue, green, red, _ = tl.randint4x(seed, pixel)
        else:
            blue, green, red, _ = tl.randn4x(seed, pixel)
            blue = _value(blue, mean_b, std_b)
            green = _value(green, mean_g, std_g)
            red = _value(red, mean_r, std_r)
        # Of uniform numbers the lowest byte is stored.
        tl.store(places, blue.to(tl.uint8), pixel < area)
        places += channel_stride
        tl.store(places, green.to(tl.uint8), pixel < area)
        places += channel_stride
        tl.store(places, red.to(tl.uint8), pixel < area)


def erase(
    images: Tensor,
    boxes: Tensor,
    colours: tuple[Sequence[float], Sequence[float]] | None,
) -> Tensor:
    """Fill rectangles with random colours.

    Args:
        images: (B, 3, H, W) in uint8.
        boxes: (K, 6) in int32: image, top, left, bottom and right, the last
            two of which lie outside, and a seed.
        colours: Mean and standard deviation of the three channels, or None
            for uniform ones.

    Returns:
        New images, channels last if these are.
    """
    images, strides = dense_images(images.clone())
    if boxes.numel() * images.numel() == 0:
        return images
    mean, std = colours or ((0.0,) * 3, (0.0,) * 3)
    height, width = images.shape[2:]
    launch(
        _erase_kernel,
        (len(boxes) * triton.cdiv(height * width, _PIXELS), 1, 1),
        (images, boxes),
        (height, width, *strides, *mean, *std),
        ('uniform' if colours is None else 'normal', _PIXELS),
        warps=4,
    )
    return images
