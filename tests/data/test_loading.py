import tarfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from evmamba_mm import LoadResizedCrop
from evmamba_mm.data import loading

from .conftest import smooth_pictures


def saved(folder, name, picture, exif=None):
    path = str(folder / name)
    image = Image.fromarray(picture[..., ::-1])
    options = {} if exif is None else dict(exif=exif)
    if name.endswith('.jpg'):
        options['quality'] = 90
    image.save(path, **options)
    return path


def turned(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def both(path, scale=32):
    """A crop by our transform and by the host's two, of one seed."""
    from mmcv.transforms import LoadImageFromFile
    from mmpretrain.datasets.transforms import RandomResizedCrop

    np.random.seed(5)
    found = LoadResizedCrop(scale)(dict(img_path=path))
    np.random.seed(5)
    expected = LoadImageFromFile()(dict(img_path=path))
    expected = RandomResizedCrop(
        scale, backend='pillow', interpolation='bicubic'
    )(expected)
    return found, expected


def differences(found, expected):
    assert found['img'].shape == expected['img'].shape
    assert found['ori_shape'] == tuple(expected['ori_shape'])
    return np.abs(found['img'].astype(int) - expected['img'])


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
@pytest.mark.parametrize('exif', [None, turned(6)])
def test_crops_are_those_of_the_hosts(tmp_path, name, exif):
    (picture,) = smooth_pictures(1, 120, 90)
    difference = differences(*both(saved(tmp_path, name, picture, exif)))
    assert difference.max() <= 3
    assert difference.mean() < 0.5


@pytest.mark.parametrize('exif', [None, turned(6)])
@pytest.mark.parametrize('scale', [16, 50, 200])
def test_large_files_are_decoded_at_a_reduced_scale(
    tmp_path, monkeypatch, exif, scale
):
    monkeypatch.setattr(loading, 'LARGE_FILE', 0)
    (picture,) = smooth_pictures(1, 600, 500)
    path = saved(tmp_path, 'a.jpg', picture, exif)
    flags = []
    decode = cv2.imdecode

    def noted(buffer, flag):
        flags.append(flag)
        return decode(buffer, flag)

    with monkeypatch.context() as patch:
        patch.setattr(cv2, 'imdecode', noted)
        LoadResizedCrop(scale, (0.9, 1.0))(dict(img_path=path))
    expected = {
        16: cv2.IMREAD_REDUCED_COLOR_8,
        50: cv2.IMREAD_REDUCED_COLOR_4,
        200: cv2.IMREAD_COLOR,
    }
    assert flags == [expected[scale]]
    # A box moves by up to half a pixel of the reduced image, which shows
    # where a whole picture becomes a few pixels.
    difference = differences(*both(path, scale))
    assert difference.mean() < {16: 6, 50: 1.5, 200: 0.5}[scale]


@pytest.mark.parametrize('large', [0, 2**18])
def test_real_photographs(data_dir, tmp_path, monkeypatch, large):
    monkeypatch.setattr(loading, 'LARGE_FILE', large)
    means = []
    with tarfile.open(data_dir / 'imagenet_sample.tar') as tar:
        names = [n for n in tar.getnames() if n.endswith('.jpg')][:12]
        for name in names:
            path = tmp_path / 'image.jpg'
            path.write_bytes(tar.extractfile(name).read())
            means.append(differences(*both(str(path), 64)).mean())
    # At a reduced scale the mean over photographs is one grey level.
    assert np.mean(means) < (1.5 if large == 0 else 0.1)


def test_a_tensor_is_packed_as_it_is(tmp_path):
    from mmpretrain.datasets.transforms import PackInputs

    (picture,) = smooth_pictures(1, 40, 50)
    path = saved(tmp_path, 'a.png', picture)
    results = []
    for as_tensor in (False, True):
        np.random.seed(0)
        item = LoadResizedCrop(32, as_tensor=as_tensor)(
            dict(img_path=path, gt_label=1)
        )
        packed = PackInputs()(item)
        assert packed['data_samples'].ori_shape == (40, 50)
        results.append(packed['inputs'])
    assert torch.equal(*results)
    assert results[1].shape == (3, 32, 32)


@pytest.mark.parametrize('large', [0, 2**18])
@pytest.mark.parametrize('content', [b'', b'no image', b'\xff\xd8 broken'])
def test_what_is_no_image_is_named(tmp_path, monkeypatch, content, large):
    monkeypatch.setattr(loading, 'LARGE_FILE', large)
    path = tmp_path / 'text.jpg'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='text.jpg.* is no image'):
        LoadResizedCrop(32)(dict(img_path=str(path)))
