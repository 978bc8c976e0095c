"""Compares the outputs of an exported file with those of the model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .dense import DenseModel

TOLERANCE = 1e-4


def other_image(image: Tensor, dynamic: Sequence[str]) -> Tensor:
    """Noise that differs from an image in each size that is dynamic."""
    batch, channels, height, width = image.shape
    # Odd numbers, which no stride divides.
    return torch.randn(
        batch + 1 if 'batch' in dynamic else batch,
        channels,
        height + 33 if 'height' in dynamic else height,
        width + 19 if 'width' in dynamic else width,
    )


@torch.no_grad()
def compare(
    model: DenseModel,
    run: Callable[[np.ndarray], Sequence[np.ndarray]],
    images: Sequence[Tensor],
    tolerance: float,
) -> float:
    """Largest error of a file, relative to each output's largest value.

    Args:
        model: The model that was exported.
        run: Gives the file's outputs for an image.
        images: Images to compare on.
        tolerance: Largest error allowed.

    Raises:
        RuntimeError: If an error is larger, or an output has another shape.
    """
    largest = 0.0
    for image in images:
        expected = model(image)
        found = run(image.numpy())
        for (name, right), output in zip(expected.items(), found, strict=True):
            output = torch.from_numpy(np.asarray(output))
            if output.shape != right.shape:
                raise RuntimeError(
                    f'output {name!r} of the exported file has shape '
                    f'{tuple(output.shape)}, that of the model '
                    f'{tuple(right.shape)}'
                )
            # An output may be zero everywhere.
            scale = right.abs().max().clamp(torch.finfo(right.dtype).tiny)
            error = (output - right).abs().max() / scale
            # A NaN is no error below the tolerance.
            if not error <= tolerance:
                raise RuntimeError(
                    f'output {name!r} of the exported file differs by '
                    f'{error:.1e} of its largest value for an image of shape '
                    f'{tuple(image.shape)}; allowed is {tolerance:.1e}'
                )
            largest = max(largest, float(error))
    return largest
