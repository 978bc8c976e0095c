"""From the loader's images to a classifier's, a batch at a time on the GPU.

Shape letters: B images of a batch, C channels, H W size, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from .arguments import checked


def _batch_augments(config: Mapping[str, Any] | None):
    if not config:
        return None
    from mmpretrain.models.utils.batch_augments import RandomBatchAugment

    try:
        return RandomBatchAugment(**config)
    except (TypeError, AssertionError, KeyError) as error:
        raise ValueError(
            f'batch_augments={config!r} cannot be built: {error}'
        ) from None


@MODELS.register_module()
class BatchDataPreprocessor(BaseDataPreprocessor):
    """Normalise and mix a batch of images, as 'ClsDataPreprocessor' does.

    It gives the same images and targets as mmpretrain's, but pads none: the
    images of a batch have one size. A pinned batch (``pin_memory=True`` of the
    loader) is copied to the GPU while the previous iteration still runs, and
    labels become scores in one step.

    Args:
        mean: Of each channel; no normalisation where it is None.
        std: Of each channel.
        to_rgb: Whether the channels are reversed first.
        to_onehot: Whether labels become scores of K classes.
        num_classes: K.
        batch_augments: Config of mmpretrain's RandomBatchAugment, which makes
            labels scores too.

    Raises:
        ValueError: If one of mean and std is given alone, or the images of a
            batch differ in their sizes.
    """

    @checked
    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_rgb: bool = False,
        to_onehot: bool = False,
        num_classes: int | None = None,
        batch_augments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(non_blocking=True)
        if (mean is None) != (std is None):
            raise ValueError(
                f'mean and std must come together, got mean={mean}, std={std}'
            )
        self.to_rgb = to_rgb
        self.num_classes = num_classes
        self.batch_augments = _batch_augments(batch_augments)
        self.to_onehot = to_onehot or self.batch_augments is not None
        if self.to_onehot and num_classes is None:
            raise ValueError('num_classes must be given to make scores')
        for name, value in (('mean', mean), ('std', std)):
            x = None if value is None else torch.tensor(value).view(-1, 1, 1)
            self.register_buffer(name, x, persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: ``inputs``, images (B, C, H, W) or a list of (C, H, W), and
                ``data_samples``, a list or None.
            training: Whether batches are mixed.

        Returns:
            ``inputs``, images in fp32 on the model's device, and
            ``data_samples`` with their labels or scores there.
        """
        images = self._images(data['inputs'])
        samples = data.get('data_samples')
        if not samples:
            return dict(inputs=images, data_samples=samples)
        if not hasattr(samples[0], 'set_gt_label'):
            # Of several tasks, whose labels mmpretrain moves alone, too.
            samples = self.cast_data(samples)
            return dict(inputs=images, data_samples=samples)
        label, scores, counts = self._targets(samples)
        if training and self.batch_augments is not None and scores is not None:
            images, scores = self.batch_augments(images, scores)
        if label is not None:
            for sample, own in zip(samples, label.split(counts), strict=True):
                sample.set_field(own, 'gt_label', dtype=Tensor)
        if scores is not None:
            for sample, score in zip(samples, scores, strict=True):
                sample.set_field(score, 'gt_score', dtype=Tensor)
        return dict(inputs=images, data_samples=samples)

    def _targets(
        self, samples: Sequence[Any]
    ) -> tuple[Tensor | None, Tensor | None, list[int]]:
        """All labels (N,), scores (B, K), and how many labels each has."""
        label, scores, counts = None, None, []
        if 'gt_label' in samples[0]:
            labels = [sample.gt_label for sample in samples]
            counts = [len(each) for each in labels]
            label = self.cast_data(torch.cat(labels))
        if 'gt_score' in samples[0]:
            stacked = torch.stack([sample.gt_score for sample in samples])
            scores = self.cast_data(stacked)
        elif self.to_onehot and label is not None:
            scores = self._scores(label, counts)
        return label, scores, counts

    def _images(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        if not isinstance(images, Tensor):
            shapes = {tuple(image.shape) for image in images}
            if len(shapes) > 1:
                raise ValueError(
                    'the images of a batch must have one size, got '
                    f'{sorted(shapes)}; resize or crop them in the pipeline'
                )
            images = torch.stack(list(self.cast_data(images)))
        images = self.cast_data(images)
        if self.to_rgb and images.shape[1] == 3:
            images = images.flip(1)
        images = images.float()
        if self.mean is None:
            return images
        return (images - self.mean).div_(self.std)

    def _scores(self, label: Tensor, counts: list[int]) -> Tensor:
        """Scores (B, K) of images with one or several labels each."""
        scores = F.one_hot(label, self.num_classes)
        if set(counts) != {1}:
            scores = torch.stack([x.sum(0) for x in scores.split(counts)])
        return scores
