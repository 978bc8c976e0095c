import pytest
import torch

from evmamba_mm import EfficientVMamba


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
