"""Small data sets in memory, and batches that travel as whole tensors.

Shape letters: N images of the data set, B of a batch, H W size.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.registry import DATASETS, FUNCTIONS
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

_logger = logging.getLogger('evmamba_mm')
# Seconds between two lines of the log while images are loaded.
TELL = 5


def _label(sample: Any) -> Tensor:
    label = sample.get('gt_label')
    if not isinstance(label, Tensor) or label.numel() != 1:
        raise ValueError(
            'each image must have one label to be stacked, got '
            f"gt_label={label}; use collate_fn=dict(type='pseudo_collate')"
        )
    return label


def _check_shapes(images: Sequence[Tensor], remedy: str) -> None:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f'images must have one size, got {sorted(shapes)}; {remedy}'
        )


class StackedBatch(dict):
    """A batch that says what it lacks.

    Attributes:
        label_limits: The least and the largest label of the data set, where
            they are known.
    """

    label_limits: tuple[int, int] | None = None

    def __missing__(self, key: Any) -> None:
        # 0 is what mmengine's default collate_fn asks for.
        remedy = (
            "collate_fn=dict(type='whole_batch') is missing in the loader of "
            'a CachedDataset'
            if key == 0
            else "what needs more takes collate_fn=dict(type='pseudo_collate')"
            ' and a data set that is not cached'
        )
        raise KeyError(
            f'a stacked batch has {", ".join(self)}, not {key!r}: {remedy}'
        )


@FUNCTIONS.register_module()
def stack_samples(items: Sequence[dict]) -> dict:
    """Collate packed images of one label each into two tensors.

    A worker hands over two tensors of a batch, not two of each image. Paths
    and other information of the samples stay behind.

    Args:
        items: What mmpretrain's PackInputs gives.

    Returns:
        ``inputs`` (B, 3, H, W), in channels-last memory, and ``gt_label``
        (B,), which BatchDataPreprocessor takes.

    Raises:
        ValueError: If sizes differ, or an image has not just one label.
    """
    images = [item['inputs'] for item in items]
    _check_shapes(images, 'resize or crop them in the pipeline')
    labels = torch.cat([_label(item['data_samples']) for item in items])
    # In a worker the stack is made in shared memory.
    stacked = default_collate([image.permute(1, 2, 0) for image in images])
    return StackedBatch(inputs=stacked.permute(0, 3, 1, 2), gt_label=labels)


@FUNCTIONS.register_module()
def whole_batch(batch: dict) -> dict:
    """Return a batch that a data set has made at once.

    Raises:
        ValueError: If it is a list of images.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            "collate_fn=dict(type='whole_batch') takes batches of a "
            'CachedDataset: put that around a RepeatDataset or ConcatDataset, '
            "or take dict(type='stack_samples')"
        )
    return batch


@DATASETS.register_module()
class CachedDataset:
    """A classifier's data set whose images stay in memory, on the GPU.

    Every image goes through its pipeline once, before the training; what is
    random must therefore stand in ``image_augments`` of
    BatchDataPreprocessor. The loader needs
    ``collate_fn=dict(type='whole_batch')``, ``num_workers=0`` and
    ``pin_memory=False``; samplers and processes are as usual. Each process
    holds all images, of N x 3 x H x W bytes.

    Args:
        dataset: Config of a data set whose pipeline ends with mmpretrain's
            PackInputs, with one label an image.
        device: Where the images are; by default where the model is.
        lazy_init: Whether the images are loaded by the first batch, not now.

    Raises:
        ValueError: If images differ in their sizes, an image has not just one
            label, or workers ask for batches.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        device: str | None = None,
        lazy_init: bool = False,
    ) -> None:
        self.dataset = DATASETS.build({**dataset, 'lazy_init': True})
        self.device = device
        self.images: Tensor | None = None
        self.labels: Tensor | None = None
        self.label_limits: tuple[int, int] | None = None
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        """Classes and the like."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Load all images, once."""
        if self.images is not None:
            return
        self.dataset.full_init()
        if not len(self.dataset):
            raise ValueError('there is no image to be held in memory')
        images, labels = zip(*self._loaded(), strict=True)
        _check_shapes(
            images,
            "add a Resize to the pipeline, such as dict(type='Resize', "
            "scale=(64, 64), backend='pillow', interpolation='bicubic')",
        )
        device = self.device or get_device()
        labels = torch.cat(labels)
        self.label_limits = int(labels.min()), int(labels.max())
        self.labels = labels.to(device)
        self.images = torch.stack(images).to(device)

    def _loaded(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Load all images by threads, and tell how far that is."""
        whole = len(self.dataset)
        start = told = time.monotonic()
        _logger.info('loading %d images into memory', whole)
        # Reading, decoding and resizing release Python's lock.
        with ThreadPoolExecutor() as pool:
            items = pool.map(self._item, range(whole))
            for number, item in enumerate(items, 1):
                yield item
                now = time.monotonic()
                if number == whole or now - told >= TELL:
                    told = now
                    _logger.info(
                        '%d of %d images are in memory after %.1f s',
                        *(number, whole, now - start),
                    )

    def _item(self, index: int) -> tuple[Tensor, Tensor]:
        item = self.dataset[index]
        return item['inputs'], _label(item['data_samples'])

    def __len__(self) -> int:
        self.full_init()
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """Return one image and its label, as a batch without its dimension."""
        self.full_init()
        return dict(inputs=self.images[index], gt_label=self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> dict:
        """Return a batch, which torch's loader asks for at once."""
        if get_worker_info() is not None:
            raise ValueError(
                'CachedDataset serves the main process alone: set '
                'num_workers=0 and persistent_workers=False of its loader'
            )
        self.full_init()
        index = torch.tensor(indices)
        if self.images.is_cuda:
            index = index.pin_memory()
        index = index.to(self.images.device, non_blocking=True)
        batch = StackedBatch(
            inputs=self.images[index], gt_label=self.labels[index]
        )
        batch.label_limits = self.label_limits
        return batch
