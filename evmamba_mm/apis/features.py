"""The feature maps of a model's backbone."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .predictors import Predictor


@torch.no_grad()
def extract_features(
    predictor: Predictor, image: str | Path | np.ndarray
) -> tuple[Tensor, ...]:
    """Return the backbone's feature maps of an image, each (1, C, H, W).

    The config's test pipeline and data preprocessor resize, normalise and pad
    the image before.

    Args:
        predictor: What :func:`load_predictor` returns.
        image: A path, or an array (H, W, 3) of uint8 in BGR.

    Raises:
        ValueError: If the model has neither a backbone nor `extract_feat`.
    """
    image = str(image) if isinstance(image, Path) else image
    prepared, sample = predictor.prepare(image)
    batch = dict(inputs=[prepared], data_samples=[sample])
    inputs = predictor.model.data_preprocessor(batch, False)['inputs']
    return backbone_outputs(predictor.model, inputs)


def backbone_outputs(model: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of the backbone, or else of `extract_feat`.

    Raises:
        ValueError: If the model has neither.
    """
    if getattr(model, 'backbone', None) is not None:
        maps = model.backbone(inputs)
    elif hasattr(model, 'extract_feat'):
        maps = model.extract_feat(inputs)
    else:
        raise ValueError(
            f'{type(model).__name__} has neither a backbone nor extract_feat'
        )
    return (maps,) if isinstance(maps, Tensor) else tuple(maps)
