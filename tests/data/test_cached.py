"""Data in memory, and whole batches, through mmengine's Runner."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from evmamba_mm import CachedDataset
from evmamba_mm.data import cached, stack_samples

IMAGES = 10
RESIZE = dict(
    type='Resize', scale=(32, 32), backend='pillow', interpolation='bicubic'
)


def images_below(folder, sizes):
    """A folder of two classes, each image of a colour of its own."""
    for number, shape in enumerate(sizes):
        path = folder / f'class{number % 2}' / f'{number:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((*shape, 3), 20 * number, np.uint8))
    return str(folder)


def settings(folder, steps=()):
    return dict(
        type='CustomDataset',
        data_root=folder,
        pipeline=[
            dict(type='LoadImageFromFile'),
            *steps,
            dict(type='PackInputs'),
        ],
    )


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def folder(tmp_path):
    return images_below(tmp_path / 'images', [(32, 32)] * IMAGES)


def loader(folder, **changes):
    return dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='whole_batch'),
        dataset=dict(type='CachedDataset', dataset=settings(folder)),
    ) | dict(changes)


def numbers(batch):
    """Which images are in a batch, read from their colours."""
    return (batch['inputs'][:, 0, 0, 0] // 20).tolist()


def test_batches_are_the_images_and_labels_of_the_data_set(folder):
    dataset = CachedDataset(settings(folder), lazy_init=True)
    assert dataset.images is None
    assert len(dataset) == IMAGES
    assert dataset.metainfo['classes'] == ('class0', 'class1')
    batches = list(Runner.build_dataloader(loader(folder), seed=0))
    assert [len(batch['inputs']) for batch in batches] == [4, 4, 2]
    assert all(batch['inputs'].dtype == torch.uint8 for batch in batches)
    seen = sum(map(numbers, batches), [])
    assert sorted(seen) == list(range(IMAGES)) and seen != sorted(seen)
    labels = torch.cat([batch['gt_label'] for batch in batches])
    assert labels.tolist() == [number % 2 for number in seen]
    # The second class begins with image 1.
    assert numbers(dict(inputs=dataset[5]['inputs'][None])) == [1]


def test_workers_make_the_same_batches_by_stacking(folder):
    found = []
    for changes in (
        {},
        dict(
            num_workers=1,
            collate_fn=dict(type='stack_samples'),
            dataset=settings(folder),
        ),
    ):
        built = Runner.build_dataloader(loader(folder, **changes), seed=0)
        found.append(list(built))
    for a, b in zip(*found, strict=True):
        # Of a cache they are on the GPU, if there is one.
        assert torch.equal(a['inputs'].cpu(), b['inputs'])
        assert torch.equal(a['gt_label'].cpu(), b['gt_label'])
    last = found[1][0]['inputs']
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_the_log_tells_how_far_the_loading_is(
    folder, package_log, monkeypatch
):
    monkeypatch.setattr(cached, 'TELL', 0)
    CachedDataset(settings(folder))
    lines = package_log.messages
    assert lines[0] == f'loading {IMAGES} images into memory'
    assert len(lines) == 1 + IMAGES
    assert f'{IMAGES} of {IMAGES} images are in memory' in lines[-1]


def test_several_sizes_need_a_stored_one(tmp_path):
    folder = images_below(tmp_path, [(32, 32), (40, 32)])
    with pytest.raises(ValueError, match='one size, got .*add a Resize'):
        CachedDataset(settings(folder))
    assert len(CachedDataset(settings(folder, [RESIZE]))) == 2


def test_workers_cannot_serve_what_is_in_memory(folder):
    built = Runner.build_dataloader(loader(folder, num_workers=1), seed=0)
    with pytest.raises(ValueError, match='num_workers=0'):
        next(iter(built))


def first_batch(folder, **changes):
    return next(iter(Runner.build_dataloader(loader(folder, **changes), 0)))


def test_a_wrong_collate_function_is_named(folder):
    with pytest.raises(KeyError, match='whole_batch.* is missing'):
        first_batch(folder, collate_fn=dict(type='pseudo_collate'))
    twice = dict(
        type='RepeatDataset', times=2, dataset=loader(folder)['dataset']
    )
    for wrong in (settings(folder), twice):
        with pytest.raises(ValueError, match='batches of a CachedDataset'):
            first_batch(folder, dataset=wrong)
    inside = dict(twice, dataset=settings(folder))
    assert len(CachedDataset(inside)) == 2 * IMAGES


def test_a_stacked_batch_says_that_it_has_no_samples(folder):
    stacked = first_batch(
        folder,
        num_workers=1,
        collate_fn=dict(type='stack_samples'),
        dataset=settings(folder),
    )
    for batch in (first_batch(folder), stacked):
        assert batch.get('data_samples') is None
        with pytest.raises(KeyError, match='pseudo_collate'):
            batch['data_samples']


@pytest.mark.parametrize('label', [None, [1, 2]])
def test_an_image_has_one_label(label):
    from mmpretrain.structures import DataSample

    sample = DataSample()
    if label is not None:
        sample.set_gt_label(label)
    item = dict(inputs=torch.zeros(3, 4, 4), data_samples=sample)
    with pytest.raises(ValueError, match='one label'):
        stack_samples([item])


class Seen(Hook):
    """Keeps the images of each batch, and each loss."""

    def __init__(self):
        self.batches, self.losses = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(numbers(data_batch))

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        self.losses.append(outputs['loss'].item())


def trained(folder, work_dir, epochs, resume=False, lr=1e-2):
    data = loader(folder)
    evaluated = loader(folder, sampler=dict(type='DefaultSampler'))
    config = dict(
        default_scope='mmpretrain',
        experiment_name=f'{work_dir.name}{epochs}{resume}',
        work_dir=str(work_dir),
        model=dict(
            type='ImageClassifier',
            backbone=dict(type='EfficientVMamba', arch='atto'),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=128),
        ),
        data_preprocessor=dict(
            type='BatchDataPreprocessor',
            mean=[100.0] * 3,
            std=[50.0] * 3,
            num_classes=2,
            image_augments=[
                dict(type='BatchRandomResizedCrop', scale=32),
                dict(type='BatchRandomFlip'),
            ],
        ),
        train_dataloader=data,
        val_dataloader=evaluated,
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        default_hooks=dict(data_wait=dict(type='DataWaitHook')),
        randomness=dict(seed=1),
        resume=resume,
        log_level='WARNING',
    )
    runner, seen = Runner.from_cfg(Config(config)), Seen()
    runner.register_hook(seen)
    runner.train()
    return runner, seen


def test_a_run_trains_validates_and_resumes(folder, tmp_path):
    runner, whole = trained(folder, tmp_path / 'whole', epochs=3)
    assert len(whole.batches) == 9
    first, second = sum(whole.batches[:3], []), sum(whole.batches[3:6], [])
    assert sorted(first) == sorted(second) and first != second
    assert 0 <= runner.message_hub.get_scalar('val/accuracy/top1').current()
    _, part = trained(folder, tmp_path / 'parts', epochs=1)
    assert (part.batches, part.losses) == (whole.batches[:3], whole.losses[:3])
    _, rest = trained(folder, tmp_path / 'parts', epochs=3, resume=True)
    assert part.batches + rest.batches == whole.batches


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_data_lie_on_the_gpu(folder):
    batch = next(iter(Runner.build_dataloader(loader(folder), seed=0)))
    assert batch['inputs'].is_cuda and batch['gt_label'].is_cuda
