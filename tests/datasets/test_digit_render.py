"""Digits and scenes as arrays."""

import numpy as np
import pytest

from evmamba_mm.datasets.digit_files import encode_rle
from evmamba_mm.datasets.digit_render import draw_glyph, draw_scene
from evmamba_mm.datasets.digit_sources import load_sources, split_rows


@pytest.fixture(scope='module')
def sources():
    pytest.importorskip('sklearn', reason='scikit-learn is not installed')
    return load_sources()


def scene(sources, seed, size=128):
    return draw_scene(sources['val'], size, np.random.default_rng(seed))


def test_split_is_stratified_and_complete():
    labels = np.repeat(np.arange(10), 50)
    rows = split_rows(labels)
    both = np.concatenate([rows['train'], rows['val']])
    np.testing.assert_array_equal(np.sort(both), np.arange(500))
    assert np.bincount(labels[rows['val']]).tolist() == [10] * 10


def test_photographs_are_shared_out_without_overlap(sources):
    from sklearn.datasets import load_sample_images

    for train, val, whole in zip(
        sources['train'].photos,
        sources['val'].photos,
        load_sample_images().images,
        strict=True,
    ):
        joined = np.concatenate([train, val], axis=1)
        np.testing.assert_array_equal(joined, whole)


def test_seed_alone_decides_the_scene(sources):
    first, again, other = (scene(sources, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize('height', [10.0, 23.7, 60.0])
def test_glyph_keeps_its_height_and_the_digits_ink(height, sources):
    digit = np.zeros((8, 8))
    digit[:, 3:5] = 1
    ink = draw_glyph(digit, height, np.random.default_rng(0))
    assert ink.min() >= 0 and ink.max() == 1
    assert abs(ink.shape[0] - height) <= 0.15 * height + 1
    assert (ink > 0.5).any(axis=0).all() and (ink > 0.5).any(axis=1).all()


@pytest.mark.parametrize('size', [64, 200])
@pytest.mark.parametrize('seed', range(4))
def test_strokes_stand_out_from_what_is_around_them(seed, size, sources):
    luma = np.array([0.299, 0.587, 0.114])
    drawn = scene(sources, seed, size)
    assert drawn.image.shape == (size, size, 3)
    assert drawn.image.dtype == np.uint8
    for instance in drawn.instances:
        x1, y1, x2, y2 = instance.box
        inside = drawn.image[instance.mask] @ luma
        window = np.zeros_like(instance.mask)
        window[y1:y2, x1:x2] = True
        around = drawn.image[window & ~instance.mask] @ luma
        assert abs(np.median(inside) - np.median(around)) > 20


def test_boxes_are_tight(sources):
    for instance in scene(sources, 5).instances:
        x1, y1, x2, y2 = instance.box
        inside = instance.mask[y1:y2, x1:x2]
        assert inside.sum() == instance.mask.sum()
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.any()


@pytest.mark.parametrize(
    'mask',
    [
        np.zeros((3, 5), bool),
        np.ones((3, 5), bool),
        np.eye(4, dtype=bool),
        np.arange(35).reshape(5, 7) % 3 == 1,
    ],
    ids=['empty', 'full', 'first-pixel', 'stripes'],
)
def test_run_lengths_decode_to_the_mask(mask):
    decoder = pytest.importorskip('pycocotools.mask')
    rle = decoder.frPyObjects(encode_rle(mask), *mask.shape)
    np.testing.assert_array_equal(decoder.decode(rle).astype(bool), mask)
