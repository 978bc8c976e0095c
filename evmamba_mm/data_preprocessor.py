"""From the loader's images to a classifier's, a batch at a time on the GPU.

Shape letters: B images of a batch, C channels, H W size, K classes.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import get_rank
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS, TRANSFORMS
from torch import Tensor

from .arguments import checked
from .compat import after_import


class LabelError(ValueError):
    """A label that is no class of the model; the message is one line."""


def check_labels(least: int, most: int, num_classes: int) -> None:
    """Refuse labels outside of 0 ... K - 1, on which a loss fails.

    Raises:
        LabelError: It names one, and the keys of the config.
    """
    if least < 0 or most >= num_classes:
        raise LabelError(
            f'a batch has the label {least if least < 0 else most}, and '
            f'num_classes={num_classes} allows 0 to {num_classes - 1}: set '
            'model.head.num_classes and model.data_preprocessor.num_classes '
            'to the number of classes of the data set, or mend its labels'
        )


def _transform(index: int, config: Mapping[str, Any]) -> Callable:
    name = f'image_augments[{index}]={config!r}'
    try:
        transform = TRANSFORMS.build(config)
    except (TypeError, AssertionError, KeyError) as error:
        raise ValueError(f'{name} cannot be built: {error}') from None
    try:
        inspect.signature(transform).bind(None, None)
    except TypeError:
        raise ValueError(
            f'{name} changes one image, not a batch: put it into the '
            "pipeline of the data set, or take this package's Batch..., such "
            'as BatchRandomFlip'
        ) from None
    return transform


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
    labels become scores in one step. The images can be augmented there first,
    while they are uint8 in the loader's order of channels.

    Args:
        mean: Of each channel; no normalisation where it is None.
        std: Of each channel.
        to_rgb: Whether the channels are reversed first.
        to_onehot: Whether labels become scores of K classes.
        num_classes: K.
        batch_augments: Config of mmpretrain's RandomBatchAugment, which makes
            labels scores too.
        image_augments: Configs of transforms of whole batches, such as
            BatchRandAugment, applied in training, in this order. Chance comes
            from torch's generator and the rank of the process.

    Raises:
        ValueError: If mean and std differ in their length, a transform is not
            one of batches, a label is no class (a LabelError), the images of
            a batch differ in their sizes, or images to be augmented are not
            (B, 3, H, W) in uint8.
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
        image_augments: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(non_blocking=True)
        if len(mean or ()) != len(std or ()):
            raise ValueError(
                'mean and std must come together and have a number a channel '
                f'each, got mean={mean}, std={std}'
            )
        self.to_rgb = to_rgb
        self.num_classes = num_classes
        self.batch_augments = _batch_augments(batch_augments)
        self.image_augments = [
            _transform(index, each)
            for index, each in enumerate(image_augments or ())
        ]
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
                ``data_samples``, a list or None, or in its place ``gt_label``
                (B,).
            training: Whether images are augmented and batches mixed.

        Returns:
            ``inputs``, images in fp32 on the model's device, and
            ``data_samples`` with their labels or scores there.
        """
        images = self._images(data['inputs'], training)
        if 'gt_label' in data:
            # Of images on the GPU the data set knows it without a wait.
            limits = getattr(data, 'label_limits', None)
            self._check_labels(data['gt_label'], limits)
            samples, targets = self._labelled(data['gt_label'])
            return self._mixed(images, samples, *targets, training)
        samples = data.get('data_samples')
        if not samples:
            return dict(inputs=images, data_samples=samples)
        if not hasattr(samples[0], 'set_gt_label'):
            # Of several tasks, whose labels mmpretrain moves alone, too.
            samples = self.cast_data(samples)
            return dict(inputs=images, data_samples=samples)
        targets = self._targets(samples)
        return self._mixed(images, samples, *targets, training)

    def _mixed(
        self,
        images: Tensor,
        samples: Sequence[Any],
        label: Tensor | None,
        scores: Tensor | None,
        counts: list[int],
        training: bool,
    ) -> dict:
        """Mix the batch in training, and give each sample its own target."""
        if training and self.batch_augments is not None and scores is not None:
            # Its permutations are drawn there: to copy one would be a wait.
            with images.device:
                images, scores = self.batch_augments(images, scores)
        if label is not None:
            for sample, own in zip(samples, label.split(counts), strict=True):
                sample.set_field(own, 'gt_label', dtype=Tensor)
        if scores is not None:
            for sample, score in zip(samples, scores, strict=True):
                sample.set_field(score, 'gt_score', dtype=Tensor)
        return dict(inputs=images, data_samples=samples)

    def _labelled(self, label: Tensor) -> tuple[list[Any], tuple]:
        """Samples of a batch that has labels (B,) alone, and the targets."""
        from mmpretrain.structures import DataSample

        samples = [DataSample() for _ in range(len(label))]
        label, counts = self.cast_data(label), [1] * len(samples)
        scores = self._scores(label, counts) if self.to_onehot else None
        return samples, (label, scores, counts)

    def _targets(
        self, samples: Sequence[Any]
    ) -> tuple[Tensor | None, Tensor | None, list[int]]:
        """All labels (N,), scores (B, K), and how many labels each has."""
        label, scores, counts = None, None, []
        if 'gt_label' in samples[0]:
            labels = [sample.gt_label for sample in samples]
            counts = [len(each) for each in labels]
            label = torch.cat(labels)
            self._check_labels(label)
            label = self.cast_data(label)
        if 'gt_score' in samples[0]:
            stacked = torch.stack([sample.gt_score for sample in samples])
            scores = self.cast_data(stacked)
        elif self.to_onehot and label is not None:
            scores = self._scores(label, counts)
        return label, scores, counts

    def _check_labels(
        self, label: Tensor, limits: tuple[int, int] | None = None
    ) -> None:
        """Look at the least and the largest, before they are on the GPU."""
        if self.num_classes is None or not label.numel():
            return
        if limits is None and not label.is_cuda:
            limits = int(label.min()), int(label.max())
        if limits is not None:
            check_labels(*limits, self.num_classes)

    def _images(
        self, images: Tensor | Sequence[Tensor], training: bool
    ) -> Tensor:
        if not isinstance(images, Tensor):
            shapes = {tuple(image.shape) for image in images}
            if len(shapes) > 1:
                raise ValueError(
                    'the images of a batch must have one size, got '
                    f'{sorted(shapes)}; resize or crop them in the pipeline'
                )
            images = torch.stack(list(self.cast_data(images)))
        images = self.cast_data(images)
        if training and self.image_augments:
            images = self._augmented(images)
        if self.to_rgb and images.shape[1] == 3:
            images = images.flip(1)
        if self.mean is None:
            return images.float()
        # In fp32, as the mean is.
        return (images - self.mean).div_(self.std)

    def _augmented(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:2] != (3,):
            raise ValueError(
                'images must be (B, 3, H, W) in uint8 to be augmented, got '
                f'{tuple(images.shape)} in {images.dtype}'
            )
        # Drawn anew for each batch, so that a resumed training goes on as an
        # uninterrupted one. Processes share a seed, unless diff_rank_seed is
        # set.
        seed = int(torch.randint(2**62, ()))
        random = np.random.default_rng((seed, get_rank()))
        # The training's precision is too low for 256 values.
        with torch.autocast(images.device.type, enabled=False):
            for augment in self.image_augments:
                images = augment(images, random)
        return images

    def _scores(self, label: Tensor, counts: list[int]) -> Tensor:
        """Scores (B, K) of images with one or several labels each."""
        scores = F.one_hot(label, self.num_classes)
        if set(counts) != {1}:
            scores = torch.stack([x.sum(0) for x in scores.split(counts)])
        return scores


def _leave_untraced(dynamo: ModuleType) -> None:
    forward = dynamo.disable(BatchDataPreprocessor.forward)
    BatchDataPreprocessor.forward = forward


# Random numbers, waits and copies: nothing that compiling would speed up, and
# it fails to trace pinned memory. The compiler itself is slow to import.
after_import('torch._dynamo', _leave_untraced)
