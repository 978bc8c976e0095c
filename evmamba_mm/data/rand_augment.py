"""RandAugment on a batch, each image with operations of its own.

Shape letters: B images, P policies, S operations one after the other.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.registry import TRANSFORMS
from torch import Tensor

from . import color, geometry
from .transfer import to_device

MODES = ('nearest', 'bilinear', 'bicubic')
# Of mmpretrain's transforms, and their argument of a fixed magnitude.
COLORS = {
    'AutoContrast': (color.auto_contrast, None),
    'Equalize': (color.equalize, None),
    'Invert': (color.invert, None),
    'Posterize': (color.posterize, 'bits'),
    'Solarize': (color.solarize, 'thr'),
    'SolarizeAdd': (color.solarize_add, 'magnitude'),
    'ColorTransform': (color.saturation, 'magnitude'),
    'Contrast': (color.contrast, 'magnitude'),
    'Brightness': (color.brightness, 'magnitude'),
    'Sharpness': (color.sharpness, 'magnitude'),
}
WARPS = {'Rotate': 'angle', 'Shear': 'magnitude', 'Translate': 'magnitude'}


class Draw(NamedTuple):
    """What happens to a batch.

    Attributes:
        policies: (S, B), the policy of each operation; P is none.
        magnitudes: (S, B), in the unit of the policy.
    """

    policies: np.ndarray
    magnitudes: np.ndarray


def _warped(
    images: Tensor,
    magnitudes: Tensor,
    matrices: Callable[[Tensor, int, int], Tensor],
    fill: Sequence[float],
    mode: str,
) -> Tensor:
    shape = images.shape[2:]
    return geometry.warp(images, matrices(magnitudes, *shape), fill, mode)


def _rotate(degrees: Tensor, height: int, width: int) -> Tensor:
    return geometry.rotation(degrees, height, width)


def _shear_x(values: Tensor, height: int, width: int) -> Tensor:
    return geometry.offset_matrices(values, 0, 1)


def _shear_y(values: Tensor, height: int, width: int) -> Tensor:
    return geometry.offset_matrices(values, 1, 0)


def _translate_x(values: Tensor, height: int, width: int) -> Tensor:
    return geometry.offset_matrices(values * width, 0, 2)


def _translate_y(values: Tensor, height: int, width: int) -> Tensor:
    return geometry.offset_matrices(values * height, 1, 2)


MATRICES = {
    ('Rotate', None): _rotate,
    ('Shear', 'horizontal'): _shear_x,
    ('Shear', 'vertical'): _shear_y,
    ('Translate', 'horizontal'): _translate_x,
    ('Translate', 'vertical'): _translate_y,
}


def _warp_of(name: str, transform: Any) -> Callable[[Tensor, Tensor], Tensor]:
    if transform.interpolation not in MODES:
        raise ValueError(
            f'interpolation of {name} must be one of {", ".join(MODES)}, got '
            f'{transform.interpolation!r}'
        )
    if name == 'Rotate' and (transform.center, transform.scale) != (None, 1):
        raise ValueError(
            'Rotate turns whole batches about the centre alone, got '
            f'center={transform.center}, scale={transform.scale}'
        )
    direction = getattr(transform, 'direction', None)
    return functools.partial(
        _warped,
        matrices=MATRICES[name, direction],
        fill=np.broadcast_to(transform.pad_val, 3).tolist(),
        mode=transform.interpolation,
    )


def operation(transform: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of a batch for one of mmpretrain's transforms.

    Raises:
        ValueError: If there is none.
    """
    name = type(transform).__name__
    if name in WARPS:
        return _warp_of(name, transform)
    if name not in COLORS:
        raise ValueError(
            f'policies must be of {", ".join((*COLORS, *WARPS))} to be '
            f"applied to batches, got {name}; mmpretrain's RandAugment in the "
            'pipeline takes any'
        )
    function = COLORS[name][0]
    if name == 'SolarizeAdd':
        return functools.partial(function, threshold=transform.thr)
    return function


def _limits(transform: Any) -> tuple[float, float]:
    """Magnitudes at level 0 and at the highest."""
    if transform.magnitude_range is not None:
        return tuple(transform.magnitude_range)
    name = type(transform).__name__
    argument = WARPS[name] if name in WARPS else COLORS[name][1]
    fixed = getattr(transform, argument) if argument else 0
    return fixed, fixed


@TRANSFORMS.register_module()
class BatchRandAugment:
    """Change each image of a batch by operations drawn for it.

    It has the arguments and the distribution of mmpretrain's RandAugment,
    which reads the policies, so that the same dict serves both. The images of
    one policy are changed together.

    Args:
        policies: Name of a set, or a dict for each operation.
        num_policies: S.
        magnitude_level: Level of all magnitudes.
        magnitude_std: Standard deviation of an image's level, or 'inf' for
            levels between 0 and this one.
        total_level: The highest level.
        hparams: Arguments of the policies that take them.

    Raises:
        ValueError: If an operation cannot be applied to a batch.
    """

    def __init__(
        self,
        policies: str | Sequence[Mapping[str, Any]],
        num_policies: int,
        magnitude_level: float,
        magnitude_std: float | str = 0.0,
        total_level: float = 10,
        hparams: Mapping[str, Any] | None = None,
    ) -> None:
        from mmpretrain.datasets.transforms import RandAugment

        stock = RandAugment(
            policies,
            num_policies,
            magnitude_level,
            magnitude_std,
            total_level,
            dict(pad_val=128) if hparams is None else hparams,
        )
        self.num_policies = num_policies
        self.level = magnitude_level
        self.std = magnitude_std
        self.total = total_level
        transforms = list(stock)
        self.operations = [operation(each) for each in transforms]
        self.limits = np.array([_limits(each) for each in transforms])
        self.prob = np.array([each.prob for each in transforms])
        self.negative = np.array(
            [each.random_negative_prob for each in transforms]
        )

    def draw(self, count: int, random: np.random.Generator) -> Draw:
        """Draw the operations of a batch.

        Args:
            count: B.
            random: Where chance comes from.
        """
        shape = (self.num_policies, count)
        policies = random.integers(len(self.operations), size=shape)
        if self.std == 'inf':
            levels = random.uniform(0, self.level, shape)
        elif self.std > 0:
            levels = random.normal(self.level, self.std, shape)
            levels = levels.clip(0, self.total)
        else:
            levels = np.full(shape, self.level)
        low, high = np.moveaxis(self.limits[policies], -1, 0)
        magnitudes = levels / self.total * (high - low) + low
        signs = random.random(shape) < self.negative[policies]
        magnitudes = np.where(signs, -magnitudes, magnitudes)
        left_out = random.random(shape) > self.prob[policies]
        policies = np.where(left_out, len(self.operations), policies)
        return Draw(policies, magnitudes.astype(np.float64))

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the batch (B, 3, H, W), changed as it was drawn."""
        orders = draw.policies.argsort(1, kind='stable')
        sorted_magnitudes = np.take_along_axis(draw.magnitudes, orders, 1)
        index = to_device(orders, images.device)
        magnitudes = to_device(sorted_magnitudes, images.device)
        images = images.clone()
        for step, policies in enumerate(draw.policies):
            counts = np.bincount(policies, minlength=len(self.operations))
            ends = counts.cumsum()
            for function, count, end in zip(
                self.operations, counts, ends, strict=False
            ):
                if count == 0:
                    continue
                own = index[step, end - count : end]
                values = magnitudes[step, end - count : end]
                images.index_copy_(0, own, function(images[own], values))
        return images

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return the batch (B, 3, H, W), each image changed by chance."""
        return self.apply(images, self.draw(len(images), random))
