"""The folder: what it holds, when it is refused, that it is whole."""

import hashlib
import json
import sys

import cv2
import numpy as np
import pytest

from evmamba_mm.datasets import (
    digit_files,
    is_digit_scenes,
    make_digit_scenes,
    read_fingerprint,
)

from .conftest import SETTINGS

SPLITS = ['train', 'val']


def file_hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in root.rglob('*')
        if path.is_file()
    }


def instances(root, split):
    path = root / 'annotations' / f'instances_{split}.json'
    return json.loads(path.read_text())


def test_same_arguments_give_same_files(digits, tmp_path):
    again = make_digit_scenes(tmp_path / 'b', **SETTINGS)
    assert file_hashes(again) == file_hashes(digits)


def test_fingerprint_tells_the_settings(digits):
    marker = read_fingerprint(digits)
    assert SETTINGS.items() <= marker.items()
    assert len(marker['sha256']) == 64


@pytest.mark.parametrize('split', SPLITS)
def test_counts_and_sizes(split, digits):
    count = SETTINGS[f'num_{split}']
    content = instances(digits, split)
    assert len(content['images']) == count
    assert len(list((digits / 'segmaps' / split).iterdir())) == count
    for record in content['images']:
        path = digits / 'scenes' / split / record['file_name']
        size = SETTINGS['size']
        assert cv2.imread(str(path)).shape == (size, size, 3)
        assert (record['height'], record['width']) == (size, size)


def test_classification_has_every_digit_of_the_source_once(digits):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    found = {
        int(path.stem): int(path.parent.name)
        for path in (digits / 'classification').rglob('*.png')
    }
    assert found == dict(enumerate(labels.tolist()))


def test_no_digit_is_in_both_splits(digits):
    rows = {}
    for split in SPLITS:
        folder = digits / 'classification' / split
        rows[split] = {int(path.stem) for path in folder.rglob('*.png')}
        for annotation in instances(digits, split)['annotations']:
            assert annotation['source_row'] in rows[split]
    assert not rows['train'] & rows['val']


@pytest.mark.parametrize('split', SPLITS)
def test_masks_agree_with_boxes_and_segmentation_maps(split, digits):
    coco_module = pytest.importorskip('pycocotools.coco')
    path = digits / 'annotations' / f'instances_{split}.json'
    coco = coco_module.COCO(str(path))
    assert coco.getCatIds(catNms=['0', '9']) == [1, 10]
    for image_id, record in coco.imgs.items():
        union = np.zeros((record['height'], record['width']), dtype=int)
        annotations = coco.imgToAnns[image_id]
        assert 1 <= len(annotations) <= 8
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            ys, xs = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert (x, y) == (xs.min(), ys.min())
            assert (width, height) == (np.ptp(xs) + 1, np.ptp(ys) + 1)
            assert annotation['area'] == mask.sum() > 0
            assert not union[mask > 0].any()
            union += mask * annotation['category_id']
        path = digits / 'segmaps' / split / record['file_name']
        drawn = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(drawn, union)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'num_train': 0}, 'num_train=0 must be within 1 and'),
        ({'num_val': 2.5}, 'num_val=2.5 must be an integer'),
        ({'num_val': True}, 'num_val=True must be an integer'),
        ({'size': 63}, 'size=63 must be within 64 and 1024'),
        ({'seed': -1}, 'seed=-1 must be within 0 and'),
    ],
    ids=['none', 'fraction', 'bool', 'small', 'seed'],
)
def test_bad_number_is_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_digit_scenes(tmp_path / 'a', **arguments)
    assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize('overwrite', [False, True])
def test_foreign_folder_is_left_alone(overwrite, tmp_path):
    (tmp_path / 'mine.txt').write_text('precious')
    with pytest.raises(ValueError, match='holds no digit data set'):
        make_digit_scenes(tmp_path, overwrite=overwrite)
    assert (tmp_path / 'mine.txt').read_text() == 'precious'


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / 'a').write_text('')
    with pytest.raises(ValueError, match='is a file, not a folder'):
        make_digit_scenes(tmp_path / 'a')


def test_earlier_set_is_replaced_only_when_asked(tmp_path):
    pytest.importorskip('sklearn', reason='scikit-learn is not installed')
    root = make_digit_scenes(tmp_path / 'a', 2, 1, 64)
    with pytest.raises(ValueError, match='already holds a digit data set'):
        make_digit_scenes(root, 1, 1, 64)
    assert read_fingerprint(root)['num_train'] == 2
    make_digit_scenes(root, 1, 1, 64, overwrite=True)
    assert read_fingerprint(root)['num_train'] == 1
    assert len(list((root / 'scenes' / 'train').iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    pytest.importorskip('sklearn', reason='scikit-learn is not installed')

    def full_disk(*_):
        raise OSError('no space left')

    monkeypatch.setattr(digit_files.DataWriter, 'write_singles', full_disk)
    with pytest.raises(OSError, match='no space left'):
        make_digit_scenes(tmp_path / 'a', 1, 1, 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('text', [None, '{', '[]', '{"layout": 0}'], ids=str)
def test_folder_without_a_valid_marker_is_not_a_set(text, tmp_path):
    if text is not None:
        (tmp_path / 'fingerprint.json').write_text(text)
    assert not is_digit_scenes(tmp_path)


def test_missing_scikit_learn_names_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match=r'pip install "evmamba_mm\[demo\]"'):
        make_digit_scenes(tmp_path / 'a')
    assert not (tmp_path / 'a').exists()
