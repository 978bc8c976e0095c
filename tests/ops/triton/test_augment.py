"""RandAugment's kernels against its torch functions.

Both round alike. What is left comes from the order in which a warp adds up
pixels: where its sum lies halfway between two values, one grey level.
"""

import numpy as np
import pytest
import torch

from evmamba_mm import BatchRandAugment
from evmamba_mm.data.rand_augment import Draw

from ...data.conftest import smooth_pictures, to_batch
from ...data.test_rand_augment import NAMES, SETTINGS

WARPS = ('Rotate', 'Shear', 'Translate')
LAYOUTS = {'contiguous': torch.contiguous_format, 'last': torch.channels_last}


def settings(interpolation='bicubic'):
    hparams = dict(SETTINGS.hparams, interpolation=interpolation)
    return BatchRandAugment(**{**SETTINGS, 'hparams': hparams})


def images_of(count, height, width, device, layout='last', seed=0):
    pictures = smooth_pictures(count, height, width, seed)
    # Of one colour, and of few values.
    pictures[0] = (10, 200, 90)
    pictures[1] = 100 + pictures[1] // 8
    images = to_batch(pictures).to(device)
    return images.contiguous(memory_format=LAYOUTS[layout])


def assert_equal(ours, images, draw, most=1, mean=0.02):
    before = images.clone()
    found = ours.apply_kernels(images, draw)
    assert torch.equal(images, before), 'the input was changed'
    assert found.shape == images.shape and found.dtype == torch.uint8
    expected = ours.apply_groups(images, draw)
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= most
    assert difference.float().mean() <= mean


def draw_of(ours, index, count):
    """Magnitudes of one operation from its least to its largest."""
    low, high = ours.limits[index]
    random = np.random.default_rng(index)
    magnitudes = random.uniform(low, high, (1, count))
    magnitudes[0, :2] = low, high
    if ours.negative[index]:
        magnitudes *= random.choice([-1, 1], (1, count))
    return Draw(np.full((1, count), index), magnitudes)


@pytest.mark.parametrize('index', range(15), ids=NAMES)
def test_an_operation_is_that_of_torch(index, device):
    ours = settings()
    images = images_of(4, 19, 27, device)
    draw = draw_of(ours, index, len(images))
    warps = SETTINGS.policies[index]['type'] in WARPS
    # The kernels of torch for a GPU round products and sums once.
    limits = (1, 0.02) if warps or device == 'cuda' else (0, 0)
    assert_equal(ours, images, draw, *limits)


@pytest.mark.parametrize('mode', ['nearest', 'bilinear'])
def test_other_interpolations(mode, device):
    ours = settings(mode)
    images = images_of(3, 16, 20, device)
    # Halfway between two pixels, torch's kernel for a GPU may take the other.
    most = 255 if (mode, device) == ('nearest', 'cuda') else 1
    for index, policy in enumerate(SETTINGS.policies):
        if policy['type'] in WARPS:
            draw = draw_of(ours, index, len(images))
            assert_equal(ours, images, draw, most)


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (2, 3), (70, 71)])
def test_odd_sizes(size, device):
    ours = settings()
    pictures = smooth_pictures(2, 80, 90)[:, : size[0], : size[1]]
    images = to_batch(pictures).to(device)
    for index, policy in enumerate(SETTINGS.policies):
        if min(size) > 9 and policy['type'] in WARPS:
            # Of many programs, which is for other tests.
            continue
        assert_equal(ours, images, draw_of(ours, index, 2))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_images_of_a_batch_change_apart(layout, device):
    ours = settings()
    images = images_of(12, 20, 24, device, layout)
    draw = ours.draw(len(images), np.random.default_rng(3))
    found = ours.apply_kernels(images, draw)
    assert found.is_contiguous(memory_format=LAYOUTS[layout])
    for i, image in enumerate(images):
        own = Draw(*(field[:, i : i + 1] for field in draw))
        assert torch.equal(ours.apply_kernels(image[None], own)[0], found[i])
    # Equalize may turn one level into several.
    difference = (found.int() - ours.apply_groups(images, draw).int()).abs()
    assert difference.float().mean() <= 0.02


def test_parts_of_a_larger_tensor(device):
    ours = settings()
    images = images_of(8, 24, 34, device)[::2, :, 3:-4, 5:-9]
    draw = ours.draw(len(images), np.random.default_rng(5))
    found = ours.apply_kernels(images, draw)
    assert torch.equal(found, ours.apply_kernels(images.clone(), draw))


def test_no_image(device):
    ours = settings()
    images = torch.empty(0, 3, 8, 8, dtype=torch.uint8, device=device)
    draw = ours.draw(0, np.random.default_rng(0))
    assert ours.apply_kernels(images, draw).shape == images.shape
