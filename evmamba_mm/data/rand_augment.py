"""RandAugment on a batch, each image with operations of its own.

Shape letters: B images, P policies, S operations one after the other.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.registry import TRANSFORMS
from torch import Tensor

from ..ops.triton import triton_installed
from . import color, geometry
from .transfer import to_device

MODES = ('nearest', 'bilinear', 'bicubic')
# Of mmpretrain's transforms, and their argument of a fixed magnitude.
TABLES = {
    'Invert': (color.invert, None),
    'Posterize': (color.posterize, 'bits'),
    'Solarize': (color.solarize, 'thr'),
    'SolarizeAdd': (color.solarize_add, 'magnitude'),
    'Brightness': (color.brightness, 'magnitude'),
}
COLORS = {
    'AutoContrast': (color.auto_contrast, None),
    'Equalize': (color.equalize, None),
    'ColorTransform': (color.saturation, 'magnitude'),
    'Contrast': (color.contrast, 'magnitude'),
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


class Group(NamedTuple):
    """Policies that are applied together, by one function.

    Attributes:
        kind: 'table', one of COLORS, or one of MODES of a warp.
        fill: Colour outside of a warped image.
    """

    kind: str
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)


class Policy(NamedTuple):
    """One of mmpretrain's transforms, for batches.

    Attributes:
        group: What it is applied together with.
        parameters: From magnitudes (B,), height and width to the parameters
            of the function, (B, ...).
        function: From images (B, 3, H, W) and parameters to new images.
    """

    group: Group
    parameters: Callable[[np.ndarray, int, int], np.ndarray]
    function: Callable[[Tensor, Tensor], Tensor]


def _table_policy(name: str, transform: Any) -> Policy:
    make = TABLES[name][0]
    if name == 'SolarizeAdd':
        make = functools.partial(make, threshold=transform.thr)

    def parameters(values: np.ndarray, height: int, width: int) -> np.ndarray:
        return make(values).clip(0, 255).astype(np.uint8)[:, None]

    return Policy(Group('table'), parameters, color.look_up)


def _color_policy(name: str) -> Policy:
    def parameters(values: np.ndarray, height: int, width: int) -> np.ndarray:
        return values

    return Policy(Group(name), parameters, COLORS[name][0])


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

    function = functools.partial(geometry.warp, fill=fill, mode=mode)
    return Policy(Group(mode, fill), matrices, function)


def policy_of(transform: Any) -> Policy:
    """Return what one of mmpretrain's transforms is for a batch.

    Raises:
        ValueError: If it cannot be applied to a batch.
    """
    name = type(transform).__name__
    if name in WARPS:
        return _warp_policy(name, transform)
    if name in TABLES:
        return _table_policy(name, transform)
    if name in COLORS:
        return _color_policy(name)
    raise ValueError(
        f'policies must be of {", ".join((*TABLES, *COLORS, *WARPS))} to be '
        f"applied to batches, got {name}; mmpretrain's RandAugment in the "
        'pipeline takes any'
    )


def _limits(transform: Any) -> tuple[float, float]:
    """Magnitudes at level 0 and at the highest."""
    if transform.magnitude_range is not None:
        return tuple(transform.magnitude_range)
    name = type(transform).__name__
    argument = WARPS.get(name) or (TABLES | COLORS)[name][1]
    fixed = getattr(transform, argument) if argument else 0
    return fixed, fixed


@TRANSFORMS.register_module()
class BatchRandAugment:
    """Change each image of a batch by operations drawn for it.

    It has the arguments and the distribution of mmpretrain's RandAugment,
    which reads the policies, so that the same dict serves both. On a GPU with
    Triton all images are changed at once. Elsewhere the images of one
    operation are changed together, as are all that are warped, and all whose
    values a table changes.

    A number as `pad_val` fills all three channels, also of Rotate, as
    mmpretrain's page of Rotate says; there OpenCV fills the first alone, and
    the others with 0.

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
        self.groups = {}
        for index, each in enumerate(self.policies):
            self.groups.setdefault(each.group, []).append(index)
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

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the batch (B, 3, H, W), changed as it was drawn."""
        if images.is_cuda and triton_installed():
            return self.apply_kernels(images, draw)
        return self.apply_groups(images, draw)

    def apply_kernels(self, images: Tensor, draw: Draw) -> Tensor:
        """Do as ``apply`` does, in two launches for each operation."""
        from ..ops.triton.augment import augment

        operations = self._operations(draw, images.shape[2:])
        return augment(images, to_device(operations, images.device))

    @functools.cached_property
    def _records(self) -> np.ndarray:
        """What the kernels must know of each policy and of none (P + 1, R)."""
        from ..ops.triton.augment import FILL, KINDS, NUMBERS

        records = np.zeros((len(self.policies) + 1, NUMBERS), np.float32)
        for record, policy in zip(records, self.policies, strict=False):
            record[0] = KINDS[policy.group.kind]
            record[FILL] = policy.group.fill
        return records

    def _operations(self, draw: Draw, size: tuple[int, int]) -> np.ndarray:
        """A draw as the kernels read it (S, B, R)."""
        from ..ops.triton.augment import FACTOR, MATRIX, TABLE

        numbers = self._records[draw.policies]
        numbers[..., FACTOR] = 1 + draw.magnitudes.astype(np.float32)
        for index, policy in enumerate(self.policies):
            if policy.group.kind in COLORS:
                continue
            own = (draw.policies == index).nonzero()
            made = policy.parameters(draw.magnitudes[own], *size)
            if policy.group.kind == 'table':
                numbers[(*own, TABLE)] = made[:, 0].view(np.float32)
            else:
                numbers[(*own, MATRIX)] = made.reshape(-1, 6)
        return numbers

    def apply_groups(self, images: Tensor, draw: Draw) -> Tensor:
        """Do as ``apply`` does, in torch: the kernels' reference."""
        images = images.clone()
        for policies, magnitudes in zip(*draw, strict=True):
            for members in self.groups.values():
                places, parameters = [], []
                for index in members:
                    (own,) = np.nonzero(policies == index)
                    made = self.policies[index].parameters(
                        magnitudes[own], *images.shape[2:]
                    )
                    places.append(own)
                    parameters.append(made)
                chosen = np.concatenate(places)
                if not len(chosen):
                    continue
                own = to_device(chosen, images.device)
                changed = self.policies[members[0]].function(
                    images[own],
                    to_device(np.concatenate(parameters), images.device),
                )
                images.index_copy_(0, own, changed)
        return images

    def __call__(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Return the batch (B, 3, H, W), each image changed by chance."""
        return self.apply(images, self.draw(len(images), random))
