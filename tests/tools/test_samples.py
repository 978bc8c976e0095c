"""A training says which file of a data set it cannot use."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import (
    TRANSFORMS,
    BaseTransform,
    LoadImageFromFile,
    Resize,
)
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement, PixelData
from torch.utils.data import DataLoader

from evmamba_mm.cli import samples
from evmamba_mm.cli.building import mistakes_in_lines


def read(info):
    image = cv2.imread(info['img_path'])
    assert image is not None, 'failed to load image'
    return dict(inputs=torch.from_numpy(image).permute(2, 0, 1))


def data_set(pipeline, *paths):
    data = BaseDataset(pipeline=[pipeline], lazy_init=True)
    data.data_list = [dict(img_path=str(path)) for path in paths]
    data._fully_initialized, data.serialize_data = True, False
    return data


@pytest.fixture
def good(tmp_path):
    cv2.imwrite(str(tmp_path / 'good.png'), np.zeros((4, 6, 3), np.uint8))
    return tmp_path / 'good.png'


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('empty.png', b'', r'empty.png is empty \(0 bytes\)$'),
        ('page.jpg', b'<html>', 'page.jpg is no image, or damaged'),
    ],
)
def test_broken_image_is_a_line(name, content, message, workers, good):
    path = good.with_name(name)
    path.write_bytes(content)
    loader = DataLoader(data_set(read, good, path), num_workers=workers)
    with pytest.raises(samples.SampleError, match=message) as error:
        with samples.named():
            list(loader)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('workers', [0, 1])
def test_image_that_is_not_packed(workers, good):
    loader = DataLoader(data_set(dict, good), num_workers=workers)
    with pytest.raises(samples.SampleError, match='good.png: the pipeline of'):
        with samples.named():
            list(loader)


def test_slender_image_that_opencv_refuses(good):
    data = data_set(LoadImageFromFile(), good)
    data.pipeline.transforms.append(Resize(scale=(0, 4)))
    with pytest.raises(samples.SampleError) as error:
        with samples.named():
            data[0]
    said = f'pipeline.1 (Resize) of the data set fails on img_path {good}: '
    assert str(error.value).startswith(f'{said}OpenCV')


def test_object_without_a_mask(good):
    def load_masks(info):
        return dict(bbox=[0, 0, 1, 1])['mask']

    with pytest.raises(samples.SampleError, match='good.png: .* has no mask'):
        with samples.named():
            data_set(load_masks, good)[0]


def test_error_of_the_pipeline_itself_is_kept(good):
    def wrong(info):
        raise KeyError('no such key')

    with pytest.raises(KeyError, match='no such key') as error:
        with samples.named():
            data_set(wrong, good)[0]
    notes = getattr(error.value, '__notes__', ['good.png'])
    assert 'good.png' in notes[0]


class OwnTransform(BaseTransform):
    """Calls a library with what it refuses, and a file that is not there."""

    def transform(self, info):
        return np.pad(info['img_path'], 'wide')


class OwnPack(BaseTransform):
    def transform(self, info):
        return dict(image=torch.zeros(3), img_path=info['img_path'])


@pytest.mark.parametrize('name', ['good.png', 'array.npy'])
def test_error_below_a_users_transform_is_kept(name, good):
    good.with_name('array.npy').write_bytes(b'no image')
    data = data_set(OwnTransform(), good.with_name(name))
    for workers in (0, 1):
        with pytest.raises(TypeError, match='pad_width') as error:
            with samples.named():
                list(DataLoader(data, num_workers=workers))
        with pytest.raises(TypeError), mistakes_in_lines(Config({})):
            raise error.value


def test_a_users_way_to_pack_is_legal(good):
    with samples.named():
        assert 'image' in data_set(OwnPack(), good)[0]


@pytest.mark.parametrize('workers', [0, 1])
def test_transform_of_a_library_that_fails(workers, good):
    flip = dict(type='RandomFlip', prob=1.0)
    data = data_set(TRANSFORMS.build(flip), good)
    loader = DataLoader(data, num_workers=workers)
    with pytest.raises(samples.SampleError) as error:
        with samples.named():
            list(loader)
    assert str(error.value) == (
        'pipeline.0 (RandomFlip) of the data set fails on img_path '
        f"{good}: there is no 'img'"
    )


def test_missing_image_and_code_outside_are_left_alone(tmp_path):
    stock = BaseDataset.prepare_data

    def missing(info):
        return open(info['img_path'])

    with pytest.raises(FileNotFoundError):
        with samples.named():
            data_set(missing, tmp_path / 'none.png')[0]
    assert BaseDataset.prepare_data is stock


@pytest.mark.parametrize('resized', [True, False])
def test_map_of_another_size(good, resized):
    def pack(info):
        labels = BaseDataElement(
            gt_sem_seg=PixelData(data=torch.zeros(1, 5, 6)),
            metainfo=dict(ori_shape=(5, 6) if resized else (4, 6)),
        )
        return dict(**read(info), data_samples=labels)

    data = data_set(pack, good)
    with samples.named():
        if resized:
            # As in a validation, where the image alone is resized.
            assert data[0]['data_samples']
            return
        with pytest.raises(samples.SampleError, match='6x5 .* image 6x4'):
            data[0]
