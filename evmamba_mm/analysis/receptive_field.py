"""The gradient of the centre of a feature map with respect to the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..apis.features import backbone_outputs
from ..apis.predictors import Predictor
from ..apis.sources import IMAGE_SUFFIXES

# The strides of the usual backbones: a crop that they divide is not padded.
MULTIPLE = 32


@dataclass(frozen=True)
class Field:
    """An average over images of |gradient|, and what it was taken of.

    ``gradient`` is (H, W), ``channels``, ``height`` and ``width`` are the
    feature map's.
    """

    gradient: object
    images: int
    channels: int
    height: int
    width: int

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) of the unit's middle, as shares of the image's sides."""
        return tuple(
            (side // 2 + 0.5) / side for side in (self.height, self.width)
        )


def find_images(folder: Path, limit: int) -> list[Path]:
    """The first images below a folder, by name.

    Raises:
        ValueError: If it is no folder or holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f'--images {str(folder)!r} is no folder')
    found = sorted(
        path
        for path in folder.rglob('*')
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise ValueError(
            f'--images {str(folder)!r} holds no image; images are '
            f'{" ".join(IMAGE_SUFFIXES)}'
        )
    return found[:limit]


def prepare(
    predictor: Predictor, paths: Sequence[Path], crop: int | None
) -> list[tuple[Tensor, BaseDataElement]]:
    """Takes images through the test pipeline, to centres of one size.

    Raises:
        ValueError: If an image is smaller than the crop.
    """
    prepared = [predictor.prepare(str(path)) for path in paths]
    heights = [image.shape[-2] for image, _ in prepared]
    widths = [image.shape[-1] for image, _ in prepared]
    smallest = min(heights), min(widths)
    if crop is None:
        sides = [side // MULTIPLE * MULTIPLE or side for side in smallest]
    elif crop > min(smallest):
        raise ValueError(
            f'--crop {crop} is more than the smallest image has after the '
            f'test pipeline, {smallest[1]}x{smallest[0]}'
        )
    else:
        sides = [crop, crop]
    return [(centre(image, *sides), sample) for image, sample in prepared]


def centre(image: Tensor, height: int, width: int) -> Tensor:
    """Cut the centre (..., height, width) out of an image (..., H, W)."""
    top = (image.shape[-2] - height) // 2
    left = (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def normalised(
    model: nn.Module, image: Tensor, sample: BaseDataElement
) -> Tensor:
    """What the model's own preprocessor makes of an image, as a leaf."""
    sample = sample.clone()
    size = tuple(image.shape[-2:])
    sample.set_metainfo(dict(img_shape=size, pad_shape=size))
    batch = dict(inputs=[image], data_samples=[sample])
    with torch.no_grad():
        inputs = model.data_preprocessor(batch, False)['inputs']
    if tuple(inputs.shape[-2:]) != size:
        raise ValueError(
            f'the data_preprocessor pads {size[1]}x{size[0]} to '
            f'{inputs.shape[-1]}x{inputs.shape[-2]}; give a --crop that it '
            'leaves alone'
        )
    return inputs.detach().requires_grad_()


def choose(maps: Sequence[Tensor], stage: int) -> Tensor:
    """One of the maps.

    Raises:
        ValueError: If there is no such map, or it is none.
    """
    if not -len(maps) <= stage < len(maps):
        raise ValueError(
            f'--stage {stage}: the backbone returns {len(maps)} maps, so '
            f'that {-len(maps)} to {len(maps) - 1} are legal; more come '
            'with --cfg-options model.backbone.out_indices="[0, 1, 2, 3]"'
        )
    chosen = maps[stage]
    if chosen.dim() != 4:
        raise ValueError(
            f'--stage {stage}: the output has shape {tuple(chosen.shape)} '
            'and is no feature map (B, C, H, W)'
        )
    return chosen


def measure(model: nn.Module, prepared: Sequence[tuple], stage: int) -> Field:
    """Average |gradient| of the centre unit over images.

    The unit's channels are summed after a ReLU: a LayerNorm at the end makes
    their plain sum a constant, whose gradient is 0.

    Args:
        model: A model of a toolbox.
        prepared: What :func:`prepare` returns.
        stage: Which of the feature maps that the backbone returns.

    Source: arXiv:1701.04128, in the form of RepLKNet (arXiv:2203.06717).
    """
    model.eval()
    total = None
    for image, sample in prepared:
        inputs = normalised(model, image, sample)
        chosen = choose(backbone_outputs(model, inputs), stage)
        height, width = chosen.shape[-2:]
        unit = chosen[0, :, height // 2, width // 2]
        (gradient,) = torch.autograd.grad(unit.relu().sum(), inputs)
        gradient = gradient[0].abs().sum(0).double().cpu()
        total = gradient if total is None else total + gradient
    mean = (total / len(prepared)).numpy()
    return Field(mean, len(prepared), chosen.shape[1], height, width)


def share_boxes(
    field: Field, shares: Sequence[float]
) -> list[tuple[float, float, float, float]]:
    """Find the least boxes round the unit that hold shares of the gradient.

    Returns:
        For each share (top, bottom, left, right), from 0 to 1, cut off at the
        image's border.

    Raises:
        ValueError: If the gradient is 0.
    """
    height, width = field.gradient.shape
    y, x = field.centre
    rows = np.abs((np.arange(height) + 0.5) / height - y)
    columns = np.abs((np.arange(width) + 0.5) / width - x)
    reach = np.maximum(rows[:, None], columns[None, :]).ravel()
    order = np.argsort(reach)
    held = np.cumsum(field.gradient.ravel()[order])
    if not 0 < held[-1] < np.inf:
        raise ValueError(
            'the gradient of the centre unit is 0 everywhere, or not finite'
        )
    places = np.searchsorted(held, np.array(shares) * held[-1])
    places = np.minimum(places, len(order) - 1)
    reaches = [float(reach[order[place]]) for place in places]
    return [
        (max(0, y - r), min(1, y + r), max(0, x - r), min(1, x + r))
        for r in reaches
    ]


def area(box: tuple[float, float, float, float]) -> float:
    """Return the area of a box of :func:`share_boxes`, from 0 to 1."""
    top, bottom, left, right = box
    return (bottom - top) * (right - left)
