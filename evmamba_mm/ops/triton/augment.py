"""Operations of RandAugment, each image of a batch with its own.

A step takes two launches for the whole batch: one makes the tables of the
images whose operation looks at their histogram, one changes all images.
`evmamba_mm/data/color.py` and `geometry.py` say what the operations are, and
the results equal theirs but for rounding.

Shape letters: B images, H W size, S steps, R the numbers of an operation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import launch

# What the first number of an operation says, by mmpretrain's name, or by the
# way in which a warp interpolates. KEEP changes nothing.
KINDS = {
    'keep': 0,
    'table': 1,
    'AutoContrast': 2,
    'Equalize': 3,
    'Contrast': 4,
    'ColorTransform': 5,
    'Sharpness': 6,
    'nearest': 7,
    'bilinear': 8,
    'bicubic': 9,
}
_KEEP = tl.constexpr(KINDS['keep'])
_TABLE = tl.constexpr(KINDS['table'])
_EQUALIZE = tl.constexpr(KINDS['Equalize'])
_CONTRAST = tl.constexpr(KINDS['Contrast'])
_SATURATION = tl.constexpr(KINDS['ColorTransform'])
_SHARPNESS = tl.constexpr(KINDS['Sharpness'])
_NEAREST = tl.constexpr(KINDS['nearest'])
_BILINEAR = tl.constexpr(KINDS['bilinear'])
_BICUBIC = tl.constexpr(KINDS['bicubic'])

# Places of the numbers of an operation, the last of which are the bytes of a
# table. One is left over for alignment.
FACTOR, MATRIX, FILL, TABLE = 1, slice(2, 8), slice(8, 11), slice(12, 76)
NUMBERS = TABLE.stop
_NUMBERS = tl.constexpr(NUMBERS)
_TABLE_BYTE = tl.constexpr(4 * TABLE.start)
# Pixels of a step of a histogram, and of a program that changes an image.
_COUNTED = 4096
_PIXELS = 512


@triton.jit
def _round(x):
    """The nearest whole number, halves to the even, for ``|x| < 2^22``."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _cut(x):
    """A value between 0 and 255, without its fraction."""
    return tl.minimum(tl.maximum(x, 0.0), 255.0).to(tl.int32)


@triton.jit
def _grey(blue, green, red):
    """OpenCV's, in units of 2^-15."""
    return (3735 * blue + 19235 * green + 9798 * red + 16384) >> 15


@triton.jit
def _load_pixels(x_ptr, offset, channel_stride, mask):
    """Blue, green and red of some pixels, in int32."""
    blue = tl.load(x_ptr + offset, mask, other=0)
    green = tl.load(x_ptr + offset + channel_stride, mask, other=0)
    red = tl.load(x_ptr + offset + 2 * channel_stride, mask, other=0)
    return blue.to(tl.int32), green.to(tl.int32), red.to(tl.int32)


@triton.jit
def _mean_grey(
    image_ptr, pixels, channel_stride, pixel_stride, BLOCK: tl.constexpr
):
    """Mean of the grey image, rounded halves to the even, in fp32."""
    sums = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, pixels, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        offset = pixel * pixel_stride
        blue, green, red = _load_pixels(
            image_ptr, offset, channel_stride, pixel < pixels
        )
        sums += _grey(blue, green, red)
    mean = tl.sum(sums, axis=0).to(tl.float64) / pixels
    # 1.5 * 2^52 is to fp64 as the number of _round is to fp32.
    mean = (mean + 6755399441055744.0) - 6755399441055744.0
    return mean.to(tl.float32)


@triton.jit
def _histogram(channel_ptr, pixels, pixel_stride, BLOCK: tl.constexpr):
    """Counts (256,) of the values of a channel."""
    counts = tl.zeros((256,), tl.int32)
    for first in range(0, pixels, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        places = channel_ptr + pixel * pixel_stride
        found = tl.load(places, pixel < pixels, other=0)
        counts += tl.histogram(found.to(tl.int32), 256)
    # The places behind the last pixel count as zeros.
    behind = tl.cdiv(pixels, BLOCK) * BLOCK - pixels
    return counts - tl.where(tl.arange(0, 256) == 0, behind, 0)


# Contrast:     t[v] = v f + mean(grey) (1 - f)
# Equalize:     t[v] = (counts below v + s / 2) / s, s = (all - last) / 255
# AutoContrast: t[v] = 255 (v - low) / (high - low)
@triton.jit
def _tables_kernel(
    made_ptr,
    images_ptr,
    numbers_ptr,
    bytes_ptr,
    pixels,
    channel_stride,
    pixel_stride,
    BLOCK: tl.constexpr,
):
    """A table for each channel of the images whose operation needs one."""
    image = (tl.program_id(0) // 3).to(tl.int64)
    channel = tl.program_id(0) % 3
    numbers_ptr += image * _NUMBERS
    kind = tl.load(numbers_ptr).to(tl.int32)
    images_ptr += image * 3 * pixels
    values = tl.arange(0, 256)
    cells = made_ptr + (3 * image + channel) * 256 + values
    if kind == _TABLE:
        bytes_ptr += image * 4 * _NUMBERS + _TABLE_BYTE
        tl.store(cells, tl.load(bytes_ptr + values))
    elif kind == _CONTRAST:
        factor = tl.load(numbers_ptr + 1)
        mean = _mean_grey(
            images_ptr, pixels, channel_stride, pixel_stride, BLOCK
        )
        table = _cut(values * factor + mean * (1.0 - factor))
        tl.store(cells, table.to(tl.uint8))
    elif (kind > _TABLE) & (kind < _CONTRAST):
        channel_ptr = images_ptr + channel.to(tl.int64) * channel_stride
        counts = _histogram(channel_ptr, pixels, pixel_stride, BLOCK)
        high = tl.max(tl.where(counts > 0, values, 0), axis=0)
        if kind == _EQUALIZE:
            last = tl.sum(tl.where(values == high, counts, 0), axis=0)
            step = (pixels - last) // 255
            below = tl.cumsum(counts, axis=0) - counts
            table = (below + step // 2) // tl.maximum(step, 1)
            table = tl.where(step > 0, tl.minimum(table, 255), values)
        else:
            low = tl.min(tl.where(counts > 0, values, 255), axis=0)
            scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
            table = _cut(values * scale - low * scale)
            table = tl.where(high > low, table, values)
        tl.store(cells, table.to(tl.uint8))


@triton.jit
def _store_pixels(y_ptr, offset, channel_stride, mask, blue, green, red):
    """Write pixels of whole numbers between 0 and 255."""
    tl.store(y_ptr + offset, blue.to(tl.uint8), mask)
    tl.store(y_ptr + offset + channel_stride, green.to(tl.uint8), mask)
    tl.store(y_ptr + offset + 2 * channel_stride, red.to(tl.uint8), mask)


@triton.jit
def _blend(x, other, factor):
    """``x f + other (1 - f)``."""
    return x * factor + other * (1.0 - factor)


@triton.jit
def _mirrored(place, size):
    """The place itself, or that of dcb|abcd|cba beside the image."""
    place = tl.abs(place)
    place = tl.where(place < size, place, 2 * size - 2 - place)
    return tl.maximum(place, 0)


# smooth = (sum of 3x3 pixels + 4 x) / 13
@triton.jit
def _smooth(
    x_ptr, y, x, height, width, channel_stride, pixel_stride, mask,
    BLOCK: tl.constexpr,
):  # fmt: skip
    blue = tl.zeros((BLOCK,), tl.int32)
    green = tl.zeros((BLOCK,), tl.int32)
    red = tl.zeros((BLOCK,), tl.int32)
    for row in tl.static_range(3):
        line = _mirrored(y + (row - 1), height) * width
        for column in tl.static_range(3):
            place = line + _mirrored(x + (column - 1), width)
            weight = 5 if row * column == 1 else 1
            b, g, r = _load_pixels(
                x_ptr, place * pixel_stride, channel_stride, mask
            )
            blue += weight * b
            green += weight * g
            red += weight * r
    # No sum lies halfway between two multiples of 13.
    return (blue + 6) // 13, (green + 6) // 13, (red + 6) // 13


@triton.jit
def _source(place, size):
    """A place in torch's units, -1 to 1 between the outer edges, and back."""
    size = size * 1.0
    scaled = tl.math.div_rn(2.0 * place + 1.0, size) - 1.0
    return ((scaled + 1.0) * size - 1.0) * 0.5


# bicubic, a = -0.75: |d| < 1: (a + 2) d^3 - (a + 3) d^2 + 1
#                     |d| < 2: a d^3 - 5 a d^2 + 8 a d - 4 a
@triton.jit
def _weight(t, kind, TAP: tl.constexpr):
    """Weight of the pixel TAP - 1 behind the one that a place is t behind."""
    if TAP == 0:
        d = t + 1.0
    elif TAP == 1:
        d = t
    elif TAP == 2:
        d = 1.0 - t
    else:
        d = 1.0 - t + 1.0
    if TAP == 1 or TAP == 2:
        cubic = (1.25 * d - 2.25) * d * d + 1.0
        linear = tl.where(kind == _BILINEAR, 1.0 - d, 2.0 - TAP)
    else:
        cubic = ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0
        linear = 0.0
    return tl.where(kind == _BICUBIC, cubic, linear)


@triton.jit
def _filled(x, fill, inside):
    """The difference from the colour outside, so that zeros stand for it."""
    return tl.where(inside, x - fill, 0.0)


@triton.jit
def _warped(
    x_ptr, numbers_ptr, kind, y, x, height, width, channel_stride,
    pixel_stride, mask, BLOCK: tl.constexpr,
):  # fmt: skip
    a, b, c = _row(numbers_ptr + 2)
    place_x = _source(a * x + b * y + c, width)
    a, b, c = _row(numbers_ptr + 5)
    place_y = _source(a * x + b * y + c, height)
    fill_b, fill_g, fill_r = _row(numbers_ptr + 8)
    nearest = kind == _NEAREST
    first_x = tl.where(nearest, _round(place_x), tl.floor(place_x))
    first_y = tl.where(nearest, _round(place_y), tl.floor(place_y))
    t_x, t_y = place_x - first_x, place_y - first_y
    left, top = first_x.to(tl.int32) - 1, first_y.to(tl.int32) - 1
    blue = tl.zeros((BLOCK,), tl.float32) + fill_b
    green = tl.zeros((BLOCK,), tl.float32) + fill_g
    red = tl.zeros((BLOCK,), tl.float32) + fill_r
    for row in tl.static_range(4):
        line = top + row
        weight_y = _weight(t_y, kind, row)
        for column in tl.static_range(4):
            pixel = left + column
            inside = mask & (line >= 0) & (line < height)
            inside &= (pixel >= 0) & (pixel < width)
            offset = (line * width + pixel) * pixel_stride
            b, g, r = _load_pixels(x_ptr, offset, channel_stride, inside)
            weight = weight_y * _weight(t_x, kind, column)
            blue += weight * _filled(b, fill_b, inside)
            green += weight * _filled(g, fill_g, inside)
            red += weight * _filled(r, fill_r, inside)
    return _cut(_round(blue)), _cut(_round(green)), _cut(_round(red))


@triton.jit
def _row(numbers_ptr):
    """Three numbers in a row."""
    first = tl.load(numbers_ptr)
    second = tl.load(numbers_ptr + 1)
    third = tl.load(numbers_ptr + 2)
    return first, second, third


@triton.jit
def _step_kernel(
    y_ptr,
    x_ptr,
    numbers_ptr,
    tables_ptr,
    height,
    width,
    channel_stride,
    pixel_stride,
    BLOCK: tl.constexpr,
):
    """Some pixels of an image, changed by its operation."""
    pixels = height * width
    tiles = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < pixels
    offset = pixel * pixel_stride
    y, x = pixel // width, pixel % width
    numbers_ptr += image * _NUMBERS
    x_ptr += image * 3 * pixels
    y_ptr += image * 3 * pixels
    kind = tl.load(numbers_ptr).to(tl.int32)
    factor = tl.load(numbers_ptr + 1)
    if kind >= _NEAREST:
        blue, green, red = _warped(
            x_ptr, numbers_ptr, kind, y, x, height, width, channel_stride,
            pixel_stride, mask, BLOCK,
        )  # fmt: skip
    else:
        blue, green, red = _load_pixels(x_ptr, offset, channel_stride, mask)
        if kind == _SHARPNESS:
            smooth_b, smooth_g, smooth_r = _smooth(
                x_ptr, y, x, height, width, channel_stride, pixel_stride,
                mask, BLOCK,
            )  # fmt: skip
            blue = _cut(_blend(blue, smooth_b, factor))
            green = _cut(_blend(green, smooth_g, factor))
            red = _cut(_blend(red, smooth_r, factor))
        elif kind == _SATURATION:
            grey = _grey(blue, green, red)
            blue = _cut(_round(_blend(blue, grey, factor)))
            green = _cut(_round(_blend(green, grey, factor)))
            red = _cut(_round(_blend(red, grey, factor)))
        elif kind != _KEEP:
            table_ptr = tables_ptr + image * 768
            blue = tl.load(table_ptr + blue).to(tl.int32)
            green = tl.load(table_ptr + 256 + green).to(tl.int32)
            red = tl.load(table_ptr + 512 + red).to(tl.int32)
    _store_pixels(y_ptr, offset, channel_stride, mask, blue, green, red)


def dense_images(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Images without gaps, and how far channels and pixels are apart.

    Args:
        images: (B, C, H, W); copied only if they are neither contiguous nor
            channels last.
    """
    if images.is_contiguous():
        return images, (images.shape[2] * images.shape[3], 1)
    images = images.contiguous(memory_format=torch.channels_last)
    return images, (1, images.shape[1])


def augment(images: Tensor, operations: Tensor) -> Tensor:
    """Change each image by its own operations, one after the other.

    Args:
        images: (B, 3, H, W) in uint8, in the order BGR.
        operations: (S, B, R) in fp32: of each one of KINDS, at FACTOR 1 + the
            magnitude, at MATRIX the cells of the matrix, at FILL the colour
            outside of the image, and at TABLE, a byte each, what a 'table'
            makes of each value.

    Returns:
        New images, channels last if these are.
    """
    images, strides = dense_images(images)
    batch, _, height, width = images.shape
    pixels = height * width
    if batch * pixels == 0:
        return images.clone()
    made = torch.empty(
        (batch, 3, 256), dtype=torch.uint8, device=images.device
    )
    for own in operations.unbind():
        launch(
            _tables_kernel,
            (3 * batch, 1, 1),
            (made, images, own, own.view(torch.uint8)),
            (pixels, *strides),
            (_COUNTED,),
            warps=8,
            contract=False,
        )
        changed = torch.empty_like(images)
        launch(
            _step_kernel,
            (batch * triton.cdiv(pixels, _PIXELS), 1, 1),
            (changed, images, own, made),
            (height, width, *strides),
            (_PIXELS,),
            warps=4,
            contract=False,
        )
        images = changed
    return images
