import pytest
import torch

from evmamba_mm import EfficientVMamba

from .released_files import save_released

timm = pytest.importorskip('timm', reason='timm is not installed')


@pytest.fixture(scope='module', autouse=True)
def registered():
    from evmamba_mm.hub import timm_models

    return timm_models


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp('released') / 'released.ckpt'
    save_released(path, 'atto', 1000)
    return dict(file=str(path))


def test_names_are_listed():
    assert timm.list_models('evmamba*') == [
        f'evmamba_{size}' for size in ('atto', 'base', 'small', 'tiny')
    ]


def test_features_only(released):
    images = torch.rand(2, 3, 70, 64)
    model = timm.create_model(
        'evmamba_atto',
        pretrained=True,
        features_only=True,
        out_indices=(1, 3),
        pretrained_cfg_overlay=released,
    ).eval()
    with torch.no_grad():
        maps = model(images)
    assert model.feature_info.channels() == [x.shape[1] for x in maps]
    assert model.feature_info.reduction() == [8, 32]
    config = dict(
        type='Pretrained', checkpoint=released['file'], prefix='backbone.'
    )
    plain = EfficientVMamba('atto', out_indices=(1, 3), init_cfg=config)
    plain.init_weights()
    with torch.no_grad():
        expected = plain.eval()(images)
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_classifier(released):
    options = dict(pretrained=True, pretrained_cfg_overlay=released)
    model = timm.create_model('evmamba_atto', **options).eval()
    stored = torch.load(released['file'])['state_dict']
    bias = stored['module.classifier.head.bias']
    assert torch.equal(model.get_classifier().bias, bias)
    model = timm.create_model('evmamba_atto', num_classes=7, **options).eval()
    images = torch.rand(2, 3, 64, 64)
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), model(images))
    assert model(images).shape == (2, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, 128)
    model.reset_classifier(0)
    assert model(images).shape == (2, 128)
    data = timm.data.resolve_model_data_config(model)
    assert (data['interpolation'], data['crop_pct']) == ('bicubic', 0.875)


def test_layers_and_recomputation(registered):
    model = timm.create_model('evmamba_atto', num_classes=3)
    matcher = model.group_matcher()
    layers = [matcher(name) for name, _ in model.named_parameters()]
    assert set(layers) == set(range(max(layers) + 1))
    model.set_grad_checkpointing()
    assert model.backbone.with_cp


def test_a_wrong_option_or_file_is_refused(released, tmp_path):
    with pytest.raises(TypeError, match='step'):
        timm.create_model('evmamba_atto', step=3)
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'a.pth')
    with pytest.raises((RuntimeError, ValueError), match='weights'):
        timm.create_model(
            'evmamba_atto',
            pretrained=True,
            pretrained_cfg_overlay=dict(file=str(tmp_path / 'a.pth')),
        )
    with pytest.raises(RuntimeError, match='of another shape'):
        timm.create_model(
            'evmamba_tiny', pretrained=True, pretrained_cfg_overlay=released
        )


@pytest.mark.parametrize('features_only', [False, True])
def test_a_part_of_the_weights_is_refused(features_only, tmp_path):
    part = tmp_path / 'part.pth'
    torch.save({'head.fc.bias': torch.ones(1000)}, part)
    options = dict(pretrained=True, features_only=features_only)
    with pytest.raises((RuntimeError, ValueError), match='missing'):
        timm.create_model(
            'evmamba_atto',
            pretrained_cfg_overlay=dict(file=str(part)),
            **options,
        )


def test_features_take_the_file_of_a_backbone(tmp_path):
    path = tmp_path / 'backbone.pth'
    backbone = EfficientVMamba('atto')
    torch.save(backbone.state_dict(), path)
    model = timm.create_model(
        'evmamba_atto',
        pretrained=True,
        features_only=True,
        pretrained_cfg_overlay=dict(file=str(path)),
    )
    for name, parameter in backbone.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
