"""Batches of detectors padded to a few sizes, which CUDA graphs need."""

import logging
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

_logger = logging.getLogger('evmamba_mm')


@MODELS.register_module()
class BatchCanvasPad(nn.Module):
    """Pad the images of a batch, below and right, to one of a few sizes.

    The canvas is the smallest, by area, that holds the batch; a batch that
    fits in none, or would grow too much, keeps its size, which the log says
    once. For ``batch_augments`` of mmdet's 'DetDataPreprocessor', which has
    then normalised the images and padded them to the size of the largest.

    Each image keeps its ``img_shape`` and ``pad_shape``: anchors in the added
    area take no part in a loss. Boxes and masks stay as they are, too.

    Args:
        canvases: Legal sizes, (height, width) each.
        max_growth: Most pixels of the canvas over those of the batch.
        pad_value: Value of the added pixels.

    Raises:
        ValueError: If a canvas is not two positive integers, there is none, or
            the growth is below 1.
    """

    def __init__(
        self,
        canvases: Sequence[Sequence[int]],
        max_growth: float = 1.5,
        pad_value: float = 0,
    ) -> None:
        super().__init__()
        sizes = [tuple(canvas) for canvas in canvases]
        legal = all(
            len(size) == 2 and all(isinstance(x, int) and x > 0 for x in size)
            for size in sizes
        )
        if not sizes or not legal:
            raise ValueError(
                'canvases must be pairs (height, width) of positive integers, '
                f'got {canvases!r}'
            )
        if max_growth < 1:
            raise ValueError(
                f'max_growth must be at least 1, got {max_growth}'
            )
        self.max_growth = max_growth
        self.canvases = sorted(sizes, key=lambda size: size[0] * size[1])
        self.pad_value = pad_value
        self._told = False

    def forward(
        self, inputs: Tensor, data_samples: Sequence[Any] | None = None
    ) -> tuple[Tensor, Sequence[Any] | None]:
        """Pad a batch.

        Args:
            inputs: Images (B, C, H, W).
            data_samples: Annotations of each, whose ``batch_input_shape``
                becomes the canvas.

        Returns:
            Both, the images with a canvas as their size.
        """
        height, width = inputs.shape[-2:]
        canvas = self._canvas(height, width)
        if canvas is None or canvas == (height, width):
            return inputs, data_samples
        inputs = F.pad(
            inputs,
            (0, canvas[1] - width, 0, canvas[0] - height),
            value=self.pad_value,
        )
        for sample in data_samples or ():
            sample.set_metainfo(dict(batch_input_shape=canvas))
        return inputs, data_samples

    def _canvas(self, height: int, width: int) -> tuple[int, int] | None:
        most = self.max_growth * height * width
        for canvas in self.canvases:
            if canvas[0] >= height and canvas[1] >= width:
                if canvas[0] * canvas[1] <= most:
                    return canvas
                break
        if not self._told:
            self._told = True
            _logger.info(
                'a batch of %dx%d keeps its size: no canvas of at most %s '
                'times its pixels holds it; there are %s',
                *(height, width, self.max_growth),
                ', '.join(f'{h}x{w}' for h, w in self.canvases),
            )
        return None
