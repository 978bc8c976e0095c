import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('mmdet', reason='mmdet is not installed')


def test_pvt_of_mmdet_returns_a_tuple():
    from mmdet.models.backbones import PyramidVisionTransformerV2

    backbone = PyramidVisionTransformerV2(
        embed_dims=32, num_layers=[1, 1, 1, 1]
    )
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert isinstance(maps, tuple)
    assert [x.shape[1] for x in maps] == [32, 64, 160, 256]
