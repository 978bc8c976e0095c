"""Where a benchmark's training has its batches from."""

import math
import os

import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed
from torch.utils.data import DataLoader, TensorDataset

# How many are kept in memory.
BATCHES = 4
# Of torch's loader.
PREFETCHED = 2


class Replayed(DataLoader):
    """A loader that gives a few batches again and again, at once.

    Args:
        batches: What a loader gave.
        length: How many to give.
    """

    def __init__(self, batches, length):
        # A Runner asks for a loader; this one loads nothing.
        super().__init__(TensorDataset(torch.zeros(length)))
        self.batches = batches
        self.count = length

    def __len__(self):
        return self.count

    def __iter__(self):
        for i in range(self.count):
            yield self.batches[i % len(self.batches)]


def random_batches(config, size, pinned):
    """Batches of noise for a classifier of mmpretrain.

    Raises:
        ValueError: If the config is of another toolbox.
    """
    if config.get('default_scope') != 'mmpretrain':
        raise ValueError(
            'random images serve configs of mmpretrain alone, got one of '
            f'{config.get("default_scope")!r}; give its data'
        )
    from mmpretrain.structures import DataSample

    count = config.train_dataloader.batch_size
    classes = (config.model.get('head') or {}).get('num_classes')
    if classes is None:
        raise ValueError(
            'random images have one label each, of model.head.num_classes, '
            'which the config lacks; give its data'
        )

    collate = config.train_dataloader.get('collate_fn', {}).get('type')

    def batch():
        images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
        labels = torch.arange(count) % classes
        if pinned:
            images, labels = images.pin_memory(), labels.pin_memory()
        if collate in ('stack_samples', 'whole_batch'):
            return dict(inputs=images, gt_label=labels)
        return dict(
            inputs=images,
            data_samples=[
                DataSample().set_gt_label(i % classes) for i in range(count)
            ],
        )

    return [batch() for _ in range(BATCHES)]


def loaded_batches(config, count=BATCHES):
    """The first batches of the config's own loader, the same in every run.

    Raises:
        ValueError: If it gives none.
    """
    # The processes of torchrun are not a group yet.
    seed = int(os.environ.get('RANK', 0))
    set_random_seed(seed)
    settings = config.train_dataloader
    loader = Runner.build_dataloader(
        lasting(settings, count * settings.batch_size), seed=seed
    )
    batches = [batch for _, batch in zip(range(count), loader, strict=False)]
    if not batches:
        raise ValueError(
            'the training data have too few images for a batch of '
            f'{settings.batch_size}; lower train_dataloader.batch_size'
        )
    return batches


def lasting(settings, images):
    """A loader's settings with data for so many images in one epoch.

    At the end of an epoch workers run out of work and start again, which
    would make up most of a small data set's time and is nothing in a large
    one. So a small one is repeated. A loader without workers stays as it is.
    """
    if not settings.get('num_workers'):
        return settings
    dataset = DATASETS.build(settings.dataset)
    times = math.ceil(images / max(1, len(dataset)))
    if times > 1:
        config = dict(type='RepeatDataset', dataset=settings.dataset)
        dataset = DATASETS.build(config | dict(times=times))
    return {**settings, 'dataset': dataset}


def ahead(settings):
    """How many batches a loader's workers make before they are asked for."""
    per_worker = settings.get('prefetch_factor') or PREFETCHED
    return settings.get('num_workers', 0) * per_worker
