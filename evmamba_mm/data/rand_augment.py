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


class Policy(NamedTuple):
    """One of mmpretrain's transforms, for batches.

    Attributes:
        group: Policies of one group are applied together.
        parameters: From magnitudes (B,), height and width to the parameters
            (B, 6) of the function.
        function: From images (B, 3, H, W) and parameters to new images.
    """

    group: tuple
    parameters: Callable[[np.ndarray, int, int], np.ndarray]
    function: Callable[[Tensor, Tensor], Tensor]


def _warp_policy(name: str, transform: Any) -> Policy:
    if transform.interpolation not in MODES:
        raise ValueError(
            f'interpolation of {name} must be one of {", ".join(MODES)}, got '
            f'{transform.interpolation!r}'
        )
    matrices = geometry.rotations
    if name != 'Rotate':
        made = dict(Shear=geometry.shears, Translate=geometry.translations)
        matrices = functools.partial(made[name], direction=transform.direction)
    elif (transform.center, transform.scale) != (None, 1):
        raise ValueError(
            'Rotate turns whole batches about the centre alone, got '
            f'center={transform.center}, scale={transform.scale}'
        )
    fill = tuple(np.broadcast_to(transform.pad_val, 3).tolist())
    mode = transform.interpolation

    def parameters(values: np.ndarray, height: int, width: int) -> np.ndarray:
        return matrices(values, height, width).reshape(-1, 6)

    def function(images: Tensor, parameters: Tensor) -> Tensor:
        return geometry.warp(images, parameters.view(-1, 2, 3), fill, mode)

    return Policy(('warp', fill, mode), parameters, function)


def policy_of(transform: Any) -> Policy:
    """Return what one of mmpretrain's transforms is for a batch.

    Raises:
        ValueError: If it cannot be applied to a batch.
    """
    name = type(transform).__name__
    if name in WARPS:
        return _warp_policy(name, transform)
    if name not in COLORS:
        raise ValueError(
            f'policies must be of {", ".join((*COLORS, *WARPS))} to be '
            f"applied to batches, got {name}; mmpretrain's RandAugment in the "
            'pipeline takes any'
        )
    change, threshold = COLORS[name][0], getattr(transform, 'thr', None)
    if name == 'SolarizeAdd':
        change = functools.partial(change, threshold=threshold)

    def parameters(values: np.ndarray, height: int, width: int) -> np.ndarray:
        return np.tile(values[:, None], 6)

    def function(images: Tensor, parameters: Tensor) -> Tensor:
        return change(images, parameters[:, 0])

    # Two of one type may differ in their thresholds.
    return Policy((name, id(transform)), parameters, function)


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
    one operation are changed together, and so are all that are warped.

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
        self.policies = [policy_of(each) for each in transforms]
        functions = {each.group: each.function for each in self.policies}
        self._functions = list(functions.values())
        numbers = [list(functions).index(x.group) for x in self.policies]
        self._group_of = np.array([*numbers, len(functions)])
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
        policies = random.integers(len(self.policies), size=shape)
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
        policies = np.where(left_out, len(self.policies), policies)
        return Draw(policies, magnitudes.astype(np.float64))

    def _parameters(self, draw: Draw, size: tuple[int, int]) -> np.ndarray:
        """Parameters (S, B, 6) of the functions."""
        found = np.zeros((*draw.policies.shape, 6))
        for index, policy in enumerate(self.policies):
            chosen = draw.policies == index
            if chosen.any():
                found[chosen] = policy.parameters(
                    draw.magnitudes[chosen], *size
                )
        return found

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the batch (B, 3, H, W), changed as it was drawn."""
        parameters = self._parameters(draw, images.shape[2:])
        groups = self._group_of[draw.policies]
        # The images of a group lie together.
        orders = groups.argsort(1, kind='stable')
        parameters = np.take_along_axis(parameters, orders[..., None], 1)
        index = to_device(orders, images.device)
        parameters = to_device(parameters, images.device)
        images = images.clone()
        for step, drawn in enumerate(groups):
            counts = np.bincount(drawn, minlength=len(self._functions))
            ends = counts.cumsum()
            # The last group is that of the images that stay as they are.
            for function, count, end in zip(
                self._functions, counts, ends, strict=False
            ):
                if count:
                    own = index[step, end - count : end]
                    values = parameters[step, end - count : end]
                    images.index_copy_(0, own, function(images[own], values))
        return images

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return the batch (B, 3, H, W), each image changed by chance."""
        return self.apply(images, self.draw(len(images), random))
