import numpy as np
import pytest
import torch
from PIL import Image

from evmamba_mm import (
    BatchRandomErasing,
    BatchRandomFlip,
    BatchRandomResizedCrop,
)
from evmamba_mm.data import geometry

from .conftest import smooth_pictures, to_batch, to_pictures

ERASING = dict(
    erase_prob=0.25,
    mode='rand',
    min_area_ratio=0.02,
    max_area_ratio=1 / 3,
    fill_color=[103.53, 116.28, 123.675],
    fill_std=[57.375, 57.12, 58.395],
)


def test_half_of_a_batch_is_mirrored(pictures):
    images = to_batch(np.concatenate([pictures] * 50))
    found = BatchRandomFlip()(images, np.random.default_rng(0))
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    kept = (found == images).flatten(1).all(1)
    assert (mirrored | kept).all()
    # One picture is of one colour.
    assert mirrored.float().mean() == pytest.approx(7 / 12, abs=0.1)


@pytest.mark.parametrize('size', [(32, 32), (64, 96), (48, 40)])
def test_crops_are_resized_as_pillow_does(pictures, size):
    random = np.random.default_rng(0)
    boxes = geometry.draw_boxes(
        random, len(pictures), (48, 64), (0.08, 1), (3 / 4, 4 / 3), 10
    )
    found = geometry.crop_and_resize(
        to_batch(pictures), torch.from_numpy(boxes), size
    )
    for picture, box, image in zip(
        pictures, boxes, to_pictures(found), strict=True
    ):
        top, left, height, width = box
        part = picture[top : top + height, left : left + width]
        expected = Image.fromarray(part).resize(size[::-1], Image.BICUBIC)
        difference = np.abs(image.astype(int) - np.asarray(expected))
        assert difference.max() <= 3
        assert difference.mean() < 0.5


@pytest.mark.parametrize('shape', [(64, 64), (40, 100), (90, 30)])
def test_boxes_are_distributed_as_those_of_mmpretrain(shape):
    from mmpretrain.datasets.transforms import RandomResizedCrop

    stock = RandomResizedCrop(32)
    np.random.seed(0)
    image = np.empty(shape)
    expected = np.array([stock.rand_crop_params(image) for _ in range(4000)])
    found = geometry.draw_boxes(
        np.random.default_rng(0), 40_000, shape, (0.08, 1), (3 / 4, 4 / 3), 10
    )
    ends = found[:, :2] + found[:, 2:]
    assert (found[:, :2] >= 0).all() and (ends <= shape).all()
    for column in range(4):
        for part in (5, 25, 50, 75, 95):
            assert np.percentile(found[:, column], part) == pytest.approx(
                np.percentile(expected[:, column], part), abs=2.5
            )


def test_crops_of_a_batch(pictures):
    crop = BatchRandomResizedCrop((24, 32))
    found = crop(to_batch(pictures), np.random.default_rng(0))
    assert found.shape == (6, 3, 24, 32)
    assert found.dtype == torch.uint8


def erased_parts(stock, shape, count):
    """Boxes that mmpretrain erases, and how many images it leaves alone."""
    boxes = [
        None if stock.random_disable() else stock.random_patch(*shape)
        for _ in range(count)
    ]
    found = np.array([box for box in boxes if box])
    return found, len(found) / count


def test_erased_boxes_are_distributed_as_those_of_mmpretrain():
    from mmpretrain.datasets.transforms import RandomErasing

    shape = (48, 64)
    np.random.seed(0)
    expected, share = erased_parts(RandomErasing(**ERASING), shape, 20_000)
    chosen, boxes = BatchRandomErasing(**ERASING).draw(
        80_000, shape, np.random.default_rng(0)
    )
    assert len(chosen) / 80_000 == pytest.approx(share, abs=0.015)
    sides = boxes[:, 2:] - boxes[:, :2]
    found = np.concatenate([boxes[:, :2], sides], 1)
    for column in range(4):
        for part in (5, 25, 50, 75, 95):
            assert np.percentile(found[:, column], part) == pytest.approx(
                np.percentile(expected[:, column], part), abs=1.5
            )


def test_erased_pixels_have_the_colours_of_mmpretrain():
    from mmpretrain.datasets.transforms import RandomErasing

    settings = {**ERASING, 'erase_prob': 1.0}
    np.random.seed(0)
    torch.manual_seed(0)
    stock = RandomErasing(**settings)
    shape = (200, 160, 3)
    image = np.zeros(shape, np.uint8)
    expected = stock._fill_pixels(image.copy(), 0, 0, *shape[:2])
    erasing = BatchRandomErasing(**settings)
    part = torch.zeros(1, 3, *shape[:2], dtype=torch.uint8)
    found = to_pictures(erasing._colours(part))[0]
    for channel in range(3):
        parts = [
            np.percentile(x[..., channel], (1, 5, 25, 50, 75, 95, 99))
            for x in (found, expected)
        ]
        np.testing.assert_allclose(*parts, atol=2.5)


@pytest.mark.parametrize('mode', ['const', 'rand'])
def test_only_the_boxes_are_erased(mode):
    images = to_batch(smooth_pictures(40, 48, 64))
    erasing = BatchRandomErasing(0.5, mode=mode, fill_color=(1, 2, 3))
    chosen, boxes = erasing.draw(40, (48, 64), np.random.default_rng(7))
    found = erasing(images, np.random.default_rng(7))
    left = images.clone()
    for i, (top, y, bottom, x) in zip(chosen, boxes, strict=True):
        part = found[i, :, top:bottom, y:x]
        if mode == 'const':
            assert (part.flatten(1).T == torch.tensor([1, 2, 3])).all()
        left[i, :, top:bottom, y:x] = part
    assert torch.equal(left, found)


@pytest.mark.parametrize(
    ('kind', 'arguments', 'message'),
    [
        (BatchRandomFlip, dict(prob=2), 'prob must be between 0 and 1'),
        (BatchRandomErasing, dict(erase_prob=-1), 'erase_prob must be'),
        (BatchRandomErasing, dict(mode='noise'), "'const' or 'rand'"),
        (BatchRandomErasing, dict(min_area_ratio=0.9), 'min_area_ratio'),
        (BatchRandomResizedCrop, dict(scale=0), 'scale must be'),
        (
            BatchRandomResizedCrop,
            dict(scale=8, crop_ratio_range=(1, 0.5)),
            'crop_ratio_range must be',
        ),
    ],
)
def test_mistakes_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
