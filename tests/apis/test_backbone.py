import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import ExifTags, Image

from evmamba_mm import EfficientVMamba, apis
from evmamba_mm.apis.backbone import MEAN, STD, image_tensor

from ..hub.released_files import save_released
from ..test_rooms import ROOT


def test_an_image_is_normalised_as_in_training():
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    config = Config.fromfile(
        ROOT / 'configs/mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
    ).data_preprocessor
    assert (tuple(config.mean), tuple(config.std)) == (MEAN, STD)
    assert config.to_rgb
    image = Image.new('RGBA', (5, 4), (255, 0, 51, 128))
    found = image_tensor(image)
    assert found.shape == (1, 3, 4, 5)
    expected = (np.array([255, 0, 51]) - MEAN) / STD
    assert found[0, :, 2, 3].numpy() == pytest.approx(expected, abs=1e-5)


def test_a_photograph_is_read_as_the_toolboxes_do(tmp_path):
    mmcv = pytest.importorskip('mmcv', reason='mmcv is not installed')
    path = tmp_path / 'turned.png'
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    )
    turned = image.getexif()
    turned[ExifTags.Base.Orientation] = 6
    image.save(path, exif=turned)
    expected = mmcv.imread(path, channel_order='rgb')
    with Image.open(path) as image:
        (found,) = image_tensor(image)
    assert expected.shape == (7, 5, 3)
    found = found.permute(1, 2, 0).numpy() * STD + MEAN
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    'image, said',
    [
        ('photo.jpg', 'an image of PIL.* got str'),
        (np.zeros((8, 8, 3), np.uint8), 'got ndarray'),
        (Image.fromarray(np.full((8, 8), 900, np.uint16)), "'I;16'"),
        (Image.fromarray(np.full((8, 8), 0.5, np.float32)), "mode 'F'"),
    ],
    ids=['path', 'array', '16-bit', 'float'],
)
def test_what_would_lose_its_values_is_refused(image, said):
    with pytest.raises(ValueError, match=said):
        image_tensor(image)


def test_features_of_an_image(tmp_path):
    path = tmp_path / 'released.ckpt'
    save_released(path)
    backbone = apis.load_backbone('atto', path, (1, 3))
    assert not backbone.training
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (50, 41, 3), np.uint8)
    )
    maps = apis.image_features(backbone, image)
    assert [x.shape[1] for x in maps] == list(backbone.channels) == [32, 128]
    assert [i['reduction'] for i in backbone.feature_info] == [8, 32]
    with torch.no_grad():
        expected = backbone(image_tensor(image))
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / 'released.ckpt'
    save_released(path)
    with pytest.raises(ValueError, match='of another shape'):
        apis.load_backbone('tiny', path)
    with pytest.raises(ValueError, match='arch must be one of'):
        apis.load_backbone('huge', path)
    with pytest.raises(ValueError, match='got .atto'):
        apis.load_backbone('atto')


def test_feature_info_is_what_the_backbone_returns():
    model = EfficientVMamba('atto', out_indices=(0, 2))
    with torch.no_grad():
        maps = model(torch.rand(1, 3, 64, 64))
    for info, found in zip(model.feature_info, maps, strict=True):
        assert found.shape[1:] == (
            info['num_chs'],
            64 // info['reduction'],
            64 // info['reduction'],
        )
        assert model.get_submodule(info['module']) is not None
