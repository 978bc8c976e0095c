"""Crops, flips and erases the images of a batch where they are.

A transform takes images (B, 3, H, W) in uint8, on any device, and a generator
of NumPy. It draws for each image apart, on the CPU, so that the host never
waits for a GPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from torch import Tensor

from ..ops.triton import triton_installed
from . import geometry
from .transfer import to_device


def check_probability(name: str, value: float) -> None:
    """Raises a ValueError unless a probability is one."""
    if not 0 <= value <= 1:
        raise ValueError(f'{name} must be between 0 and 1, got {value!r}')


def check_range(name: str, values: Sequence[float]) -> tuple[float, float]:
    """Returns a range of two positive numbers, or raises a ValueError."""
    if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ValueError(
            f'{name} must be two numbers above 0, the least first, got '
            f'{values!r}'
        )
    return tuple(values)


def _colour(values: float | Sequence[float]) -> np.ndarray:
    """A value for each channel (3, 1, 1)."""
    return np.broadcast_to(values, 3).astype(np.float32).reshape(3, 1, 1)


@TRANSFORMS.register_module()
class BatchRandomFlip:
    """Mirror some images of a batch, left for right.

    Args:
        prob: How many of them.
    """

    def __init__(self, prob: float = 0.5) -> None:
        check_probability('prob', prob)
        self.prob = prob

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return the batch with some images mirrored."""
        (chosen,) = np.nonzero(random.random(len(images)) < self.prob)
        if not len(chosen):
            return images
        index = to_device(chosen, images.device)
        return images.index_copy(0, index, images[index].flip(3))


@TRANSFORMS.register_module()
class BatchRandomResizedCrop:
    """Crop each image of a batch at random and resize it.

    Boxes are drawn as mmpretrain's RandomResizedCrop draws them, and resized
    as it does with Pillow, antialiased and bicubic.

    Args:
        scale: Side, or height and width, of the result.
        crop_ratio_range: Least and most of an image's area.
        aspect_ratio_range: Least and most width over height.
        max_attempts: Boxes drawn before the centre is taken.

    Raises:
        ValueError: If an argument is illegal.
    """

    def __init__(
        self,
        scale: int | Sequence[int],
        crop_ratio_range: Sequence[float] = (0.08, 1.0),
        aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
    ) -> None:
        size = (scale, scale) if isinstance(scale, int) else tuple(scale)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f'scale must be a side or height and width, got {scale!r}'
            )
        self.size = size
        self.area = check_range('crop_ratio_range', crop_ratio_range)
        self.aspect = check_range('aspect_ratio_range', aspect_ratio_range)
        self.attempts = max_attempts

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return crops (B, 3, *scale)."""
        boxes = geometry.draw_boxes(
            random,
            len(images),
            images.shape[2:],
            self.area,
            self.aspect,
            self.attempts,
        )
        boxes = to_device(boxes, images.device)
        return geometry.crop_and_resize(images, boxes, self.size)


@TRANSFORMS.register_module()
class BatchRandomErasing:
    """Erase a rectangle in some images of a batch.

    It has the arguments and the distribution of mmpretrain's RandomErasing.

    Args:
        erase_prob: How many images.
        min_area_ratio: Least part of the image.
        max_area_ratio: Largest part of the image.
        aspect_range: Least and most height over width, drawn by its
            logarithm; a number stands for itself and its inverse.
        mode: 'const' fills with the colour, 'rand' each pixel apart.
        fill_color: Colour, or mean of the random colours.
        fill_std: Standard deviation of the random colours; they are uniform
            without one.

    Raises:
        ValueError: If an argument is illegal.
    """

    def __init__(
        self,
        erase_prob: float = 0.5,
        min_area_ratio: float = 0.02,
        max_area_ratio: float = 0.4,
        aspect_range: float | Sequence[float] = (3 / 10, 10 / 3),
        mode: str = 'const',
        fill_color: float | Sequence[float] = (128, 128, 128),
        fill_std: float | Sequence[float] | None = None,
    ) -> None:
        check_probability('erase_prob', erase_prob)
        self.area = check_range(
            'min_area_ratio, max_area_ratio', (min_area_ratio, max_area_ratio)
        )
        if isinstance(aspect_range, (int, float)):
            least = min(aspect_range, 1 / aspect_range)
            aspect_range = (least, 1 / least)
        self.aspect = check_range('aspect_range', aspect_range)
        if mode not in ('const', 'rand'):
            raise ValueError(f"mode must be 'const' or 'rand', got {mode!r}")
        self.prob = erase_prob
        self.mode = mode
        self.mean = _colour(fill_color)
        self.std = None if fill_std is None else _colour(fill_std)

    def draw(
        self, count: int, size: tuple[int, int], random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw which images (K,) are erased, and the boxes (K, 4) in them.

        A box is top, left, bottom and right; the last two lie outside.
        """
        (chosen,) = np.nonzero(random.random(count) <= self.prob)
        shape = chosen.shape
        aspect = np.exp(random.uniform(*np.log(self.aspect), shape))
        area = size[0] * size[1] * random.uniform(*self.area, shape)
        sides = np.sqrt(np.stack([area * aspect, area / aspect], 1))
        sides = np.minimum(np.round(sides), size).astype(int)
        free = np.array(size) - sides
        start = np.floor(random.random(sides.shape) * free).astype(int)
        return chosen, np.concatenate([start, start + sides], 1)

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return the batch with rectangles filled in."""
        chosen, boxes = self.draw(len(images), images.shape[2:], random)
        if not len(chosen):
            return images
        if images.is_cuda and triton_installed():
            return self.erase_by_kernel(images, chosen, boxes, random)
        index = to_device(chosen, images.device)
        boxes = to_device(boxes, images.device)[..., None, None]
        top, left, bottom, right = boxes.unbind(1)
        y = torch.arange(images.shape[2], device=images.device)[:, None]
        x = torch.arange(images.shape[3], device=images.device)
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        part = images[index]
        part = torch.where(inside[:, None], self._colours(part), part)
        return images.index_copy(0, index, part)

    def erase_by_kernel(
        self,
        images: Tensor,
        chosen: np.ndarray,
        boxes: np.ndarray,
        random: np.random.Generator,
    ) -> Tensor:
        """Return the batch with what ``draw`` drew filled in by one launch."""
        from ..ops.triton.erase import erase

        seeds = random.integers(2**31, size=len(chosen))
        numbers = np.column_stack([chosen, boxes, seeds]).astype(np.int32)
        colours = None
        if self.mode == 'const' or self.std is not None:
            std = np.zeros(3) if self.mode == 'const' else self.std
            colours = self.mean.ravel().tolist(), std.ravel().tolist()
        return erase(images, to_device(numbers, images.device), colours)

    def _colours(self, part: Tensor) -> Tensor:
        if self.mode == 'rand' and self.std is None:
            return torch.randint_like(part, 256)
        mean = to_device(self.mean, part.device)
        if self.mode == 'const':
            return mean.to(torch.uint8)
        std = to_device(self.std, part.device)
        noise = torch.randn(part.shape, device=part.device) * std + mean
        return noise.clamp_(0, 255).to(torch.uint8)
