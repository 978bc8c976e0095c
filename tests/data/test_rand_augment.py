"""RandAugment of batches: each operation, and how often each is drawn.

The reference is mmpretrain's own, an image at a time, with the policies of
the shipped config.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from evmamba_mm import BatchRandAugment
from evmamba_mm.data.rand_augment import WARPS, Draw

from .conftest import to_batch, to_pictures

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
SETTINGS = Config.fromfile(ROOT / CONFIG).rand_augment
# Most difference of one value, and mean over all: OpenCV's older releases
# interpolate between positions rounded to 1/32 of a pixel.
WARPED = dict(most=24, mean=0.6)
EXACT = dict(most=1, mean=0.1)
NAMES = [
    policy['type'] + policy.get('direction', '')[:1]
    for policy in SETTINGS.policies
]


def stock_settings(**changes):
    from mmpretrain.datasets.transforms import RandAugment

    return RandAugment(**{**SETTINGS, **changes})


def run_stock(transform, pictures, magnitude, monkeypatch):
    """Every picture by mmpretrain's transform, at this magnitude."""
    monkeypatch.setattr(transform, 'random_disable', lambda: False)
    monkeypatch.setattr(transform, 'random_magnitude', lambda: magnitude)
    monkeypatch.setattr(transform, 'random_negative', lambda value: value)
    images = [dict(img=picture.copy()) for picture in pictures]
    return np.stack([transform(image)['img'] for image in images])


def magnitudes_of(transform):
    if transform.magnitude_range is None:
        return [0.0]
    low, high = transform.magnitude_range
    found = [level / 10 * (high - low) + low for level in (0, 3, 9, 10)]
    if transform.random_negative_prob:
        found += [-value for value in found]
    return found


@pytest.mark.parametrize('index', range(15), ids=NAMES)
def test_an_operation_is_that_of_mmpretrain(index, pictures, monkeypatch):
    stock, ours = list(stock_settings()), BatchRandAugment(**SETTINGS)
    name = SETTINGS.policies[index]['type']
    limits = WARPED if name in ('Rotate', 'Shear', 'Translate') else EXACT
    for magnitude in magnitudes_of(stock[index]):
        expected = run_stock(stock[index], pictures, magnitude, monkeypatch)
        every = np.ones((1, len(pictures)))
        draw = Draw(every.astype(int) * index, every * magnitude)
        found = ours.apply(to_batch(pictures), draw)
        assert found.dtype == torch.uint8
        difference = np.abs(to_pictures(found).astype(int) - expected)
        assert difference.max() <= limits['most'], magnitude
        assert difference.mean() <= limits['mean'], magnitude


def test_draws_are_distributed_as_those_of_mmpretrain():
    stock, ours = stock_settings(), BatchRandAugment(**SETTINGS)
    count = 60_000
    draw = ours.draw(count, np.random.default_rng(0))
    assert draw.policies.shape == (2, count)
    np.random.seed(0)
    for index, transform in enumerate(stock):
        share = (draw.policies == index).mean(1)
        # Half of the operations are left out; 4 standard deviations.
        assert share == pytest.approx([1 / 30] * 2, abs=4 * 7.4e-4)
        if transform.magnitude_range is None:
            continue
        found = draw.magnitudes[draw.policies == index]
        expected = [
            transform.random_negative(transform.random_magnitude())
            for _ in range(4000)
        ]
        low, high = transform.magnitude_range
        for part in (10, 30, 50, 70, 90):
            difference = np.subtract(
                np.percentile(np.abs(found), part),
                np.percentile(np.abs(expected), part),
            )
            assert abs(difference) < 0.01 * (high - low)
        negative = transform.random_negative_prob
        signs = (found < 0).mean()
        assert signs == pytest.approx(negative, abs=0.05)
    # The second operation of an image does not depend on the first.
    both = np.mean(draw.policies[0] == draw.policies[1])
    assert both == pytest.approx(1 / 4 + 15 / 900, abs=0.01)


@pytest.mark.parametrize('std', [0, 'inf'])
def test_other_levels(std):
    ours = BatchRandAugment(**{**SETTINGS, 'magnitude_std': std})
    draw = ours.draw(5000, np.random.default_rng(0))
    # Of Solarize, from 0 to 256.
    found = draw.magnitudes[draw.policies == 5] / 25.6
    assert found.max() <= 9 + 1e-9
    assert found.mean() == pytest.approx(4.5 if std == 'inf' else 9, abs=0.5)


def test_an_image_does_not_depend_on_its_batch(pictures):
    ours = BatchRandAugment(**SETTINGS)
    images = to_batch(np.concatenate([pictures] * 4))
    draw = ours.draw(len(images), np.random.default_rng(3))
    together = ours.apply(images, draw)
    for i, image in enumerate(images):
        own = type(draw)(*(field[:, i : i + 1] for field in draw))
        assert torch.equal(ours.apply(image[None], own)[0], together[i])


def test_memory_format_does_not_matter(pictures):
    ours = BatchRandAugment(**SETTINGS)
    images = to_batch(pictures)
    last = images.to(memory_format=torch.channels_last)
    results = [ours(x, np.random.default_rng(1)) for x in (images, last)]
    assert torch.equal(*results)
    assert torch.equal(images, to_batch(pictures)), 'the input was changed'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_gives_what_the_cpu_gives_without_waiting(pictures):
    ours = BatchRandAugment(**SETTINGS)
    images = to_batch(np.concatenate([pictures] * 8))
    draw = ours.draw(len(images), np.random.default_rng(3))
    expected = ours.apply(images, draw)
    on_gpu = images.cuda()
    ours.apply(on_gpu, draw)
    torch.cuda.set_sync_debug_mode('error')
    try:
        found = ours.apply(on_gpu, draw)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    difference = (found.cpu().int() - expected.int()).abs()
    assert difference.float().mean() < 0.01


@pytest.mark.parametrize(
    ('policy', 'message'),
    [
        (dict(type='Cutout', shape=4), 'must be of Invert'),
        (dict(type='Rotate', angle=9, scale=2.0), 'about the centre alone'),
        (dict(type='Rotate', angle=9, interpolation='area'), 'interpolation'),
    ],
)
def test_what_cannot_be_done_in_batches_is_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        BatchRandAugment([policy], 1, 9)


def test_fixed_magnitudes(pictures, monkeypatch):
    ours = BatchRandAugment([dict(type='Posterize', bits=3, prob=1.0)], 1, 9)
    found = ours(to_batch(pictures), np.random.default_rng(0))
    assert torch.equal(found, to_batch(pictures) >> 5 << 5)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (1, 2)])
@pytest.mark.parametrize('index', range(15), ids=NAMES)
def test_images_of_a_lone_row_or_column(index, size, monkeypatch):
    stock, ours = list(stock_settings()), BatchRandAugment(**SETTINGS)
    random = np.random.default_rng(0)
    pictures = random.integers(256, size=(2, *size, 3), dtype=np.uint8)
    for magnitude in magnitudes_of(stock[index]):
        expected = run_stock(stock[index], pictures, magnitude, monkeypatch)
        every = np.ones((1, len(pictures)))
        draw = Draw(every.astype(int) * index, every * magnitude)
        found = to_pictures(ours.apply(to_batch(pictures), draw))
        difference = np.abs(found.astype(int) - expected)
        # OpenCV rounds positions to 1/32 of a pixel, from black to white.
        warped = SETTINGS.policies[index]['type'] in WARPS
        assert difference.max() <= (24 if warped else 1), magnitude


def test_a_number_fills_every_channel(pictures, monkeypatch):
    from mmpretrain.datasets.transforms import Rotate

    rotate = dict(angle=30.0, prob=1.0, random_negative_prob=0.0)
    policy = dict(type='Rotate', pad_val=128, **rotate)
    found = BatchRandAugment([policy], 1, 9)(
        to_batch(pictures), np.random.default_rng(0)
    )
    assert to_pictures(found)[:, 0, 0].tolist() == [[128] * 3] * len(pictures)
    stock = Rotate(pad_val=128, **rotate)
    corner = stock(dict(img=pictures[0].copy()))['img'][0, 0]
    assert corner.tolist() == [128, 0, 0]
