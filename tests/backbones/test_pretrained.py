import pytest
import torch
from torch import nn

from evmamba_mm import EfficientVMamba
from evmamba_mm.layers import LayerNorm2d


def save_classifier(path, arch='atto'):
    torch.manual_seed(3)
    backbone = EfficientVMamba(arch)
    weights = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    weights['head.fc.weight'] = torch.zeros(10, 128)
    torch.save(dict(state_dict=weights), path)
    return backbone


def pretrained(path, prefix='backbone.'):
    return dict(type='Pretrained', checkpoint=str(path), prefix=prefix)


@pytest.mark.parametrize(
    'out_indices', [-1, (0, 1, 2, 3), (0, 1)], ids=['last', 'dense', 'short']
)
def test_a_classifier_fills_the_backbone(tmp_path, out_indices):
    source = save_classifier(tmp_path / 'a.pth').state_dict()
    model = EfficientVMamba(
        'atto',
        out_indices=out_indices,
        init_cfg=pretrained(tmp_path / 'a.pth'),
    )
    model.init_weights()
    for name, value in model.state_dict().items():
        if name in source:
            assert torch.equal(value, source[name]), name
        else:
            assert name.startswith('norm'), name


def test_another_arch_is_refused(tmp_path):
    save_classifier(tmp_path / 'a.pth')
    model = EfficientVMamba('tiny', init_cfg=pretrained(tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match='of another shape.*Check arch'):
        model.init_weights()


def test_a_forgotten_prefix_is_told(tmp_path):
    save_classifier(tmp_path / 'a.pth')
    model = EfficientVMamba(
        'atto', init_cfg=pretrained(tmp_path / 'a.pth', prefix=None)
    )
    with pytest.raises(ValueError, match='missing.*prefix'):
        model.init_weights()


def test_a_missing_weight_is_told(tmp_path):
    weights = EfficientVMamba('atto').state_dict()
    del weights['stages.0.0.mixer.A_logs']
    torch.save(weights, tmp_path / 'a.pth')
    model = EfficientVMamba(
        'atto', init_cfg=pretrained(tmp_path / 'a.pth', prefix=None)
    )
    with pytest.raises(ValueError, match=r'1 missing.*mixer\.A_logs'):
        model.init_weights()


class OtherStem(EfficientVMamba):
    fresh_keys = r'patch_embed\.'

    def __init__(self, init_cfg=None):
        super().__init__('atto', init_cfg=init_cfg)
        conv = nn.Conv2d(3, 16, 8, 4, 2)
        # Keys of the released stem, the first in another shape.
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module('conv', conv)
        self.patch_embed.add_module('new', LayerNorm2d(16))


@pytest.mark.parametrize('by', ['init_cfg', 'torch'])
def test_a_part_of_a_subclass_may_be_fresh(tmp_path, monkeypatch, by):
    source = save_classifier(tmp_path / 'a.pth').state_dict()
    model = OtherStem(init_cfg=pretrained(tmp_path / 'a.pth'))
    stem = model.patch_embed.conv.weight.clone()
    if by == 'torch':
        model.load_state_dict(source, strict=False)
    else:
        model.init_weights()
    assert torch.equal(model.patch_embed.conv.weight, stem)
    assert torch.equal(
        model.stages[0][0].norm.weight, source['stages.0.0.norm.weight']
    )
    # Its own weights are read.
    again = OtherStem()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.patch_embed.conv.weight, stem)
    # All others are asked for as before.
    monkeypatch.setattr(OtherStem, 'fresh_keys', None)
    with pytest.raises(ValueError, match='2 missing.*patch_embed.new'):
        model.init_weights()


@pytest.mark.parametrize('dtype', [torch.int64, torch.int8, torch.complex64])
def test_weights_that_are_no_floats(dtype, tmp_path):
    weights = save_classifier(tmp_path / 'a.pth').state_dict()
    key = 'stages.0.0.norm.weight'
    weights[key] = weights[key].to(dtype)
    said = f'1 of no real floating dtype.*{key} of {dtype}'
    with pytest.raises(RuntimeError, match=said):
        EfficientVMamba('atto').load_state_dict(weights)
    torch.save(weights, tmp_path / 'a.pth')
    init = pretrained(tmp_path / 'a.pth', None)
    with pytest.raises(ValueError, match=f'a.pth.*{said}'):
        EfficientVMamba('atto', init_cfg=init).init_weights()


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.double]
)
def test_weights_of_any_float_are_loaded(dtype, tmp_path):
    source = save_classifier(tmp_path / 'a.pth').to(dtype)
    model = EfficientVMamba('atto')
    model.load_state_dict(source.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key].to(value.dtype))
