"""A backbone with weights, and its feature maps of an image, without a config.

backbone = load_backbone('tiny', out_indices=(0, 1, 2, 3))
maps = image_features(backbone, Image.open('photo.jpg'))
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..backbones import EfficientVMamba

# Of RGB values from 0 to 255, as the released classifiers were trained.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def load_backbone(
    arch: str = 'tiny',
    checkpoint: str | Path | None = None,
    out_indices: int | Sequence[int] = -1,
    device: str = 'cpu',
) -> EfficientVMamba:
    """Return a backbone with trained weights, in evaluation mode.

    A classifier's file has the norm of the last output alone: the other
    outputs are normalised without scale and shift.

    Args:
        arch: As of :class:`evmamba_mm.EfficientVMamba`.
        checkpoint: A classifier's file, released or converted; without it the
            released weights of this arch, which the first call fetches.
        out_indices: Stages whose feature maps to return.
        device: Where to compute.

    Raises:
        ValueError: If an argument is illegal, or the file does not fit.
    """
    if checkpoint is None:
        checkpoint = f'evmamba://{arch}'
    backbone = EfficientVMamba(
        arch,
        out_indices=out_indices,
        init_cfg=dict(
            type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.'
        ),
    )
    backbone.init_weights()
    return backbone.to(device).eval()


def image_tensor(image: Image.Image) -> Tensor:
    """Return an image as (1, 3, H, W), normalised as in training.

    A photograph is turned upright by its EXIF, as the toolboxes do it.

    Raises:
        ValueError: If it is no image of PIL, or has more than 8 bits a value,
            which PIL would cut off.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(
            'image must be an image of PIL, as Image.open(FILE) and '
            f'Image.fromarray(ARRAY) give it, got {type(image).__name__}'
        )
    if image.mode[0] in 'IF':
        raise ValueError(
            'image must have 8 bits a value, got one of PIL mode '
            f'{image.mode!r}: scale its values to 0 to 255 and convert it to '
            "'L' or 'RGB' before"
        )
    upright = ImageOps.exif_transpose(image).convert('RGB')
    pixels = torch.from_numpy(np.array(upright, np.float32))
    normalised = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    return normalised.permute(2, 0, 1).unsqueeze(0).contiguous()


@torch.no_grad()
def image_features(
    backbone: EfficientVMamba, image: Image.Image
) -> tuple[Tensor, ...]:
    """Return the feature maps of an image, each (1, C, H, W).

    The image is neither resized nor cropped.

    Raises:
        ValueError: If the image is none of PIL with 8 bits a value.
    """
    device = next(backbone.parameters()).device
    return backbone(image_tensor(image).to(device))
