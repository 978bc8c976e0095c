"""Data that keep up with a GPU: loading, batches in memory, augmentation."""

from .batch_transforms import (
    BatchRandomErasing,
    BatchRandomFlip,
    BatchRandomResizedCrop,
)
from .cached import CachedDataset, stack_samples, whole_batch
from .loading import LoadResizedCrop
from .rand_augment import BatchRandAugment

__all__ = [
    'BatchRandAugment',
    'BatchRandomErasing',
    'BatchRandomFlip',
    'BatchRandomResizedCrop',
    'CachedDataset',
    'LoadResizedCrop',
    'stack_samples',
    'whole_batch',
]
