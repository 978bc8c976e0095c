import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.registry import MODELS
from torch import nn

from evmamba_mm.backbones import VMAMBA_ARCHS, VMamba

from .peer_references import ss2d


def classifier(arch):
    """The host's classifier, as the configs build it."""
    registry = pytest.importorskip('mmpretrain.registry').MODELS
    import mmpretrain.models  # noqa: F401

    width = VMAMBA_ARCHS[arch].channels[-1]
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=width)
    return registry.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='VMamba', arch=arch),
            neck=dict(type='GlobalAveragePooling'),
            head=head,
        )
    )


# The published column leaves the classifier's last layer out.
@pytest.mark.parametrize(
    ('arch', 'expected', 'published'),
    [
        ('tiny', 22_893_448, '22'),
        ('small', 44_417_416, '44'),
        ('base', 76_254_056, '75'),
    ],
)
def test_parameters_of_the_classifier(arch, expected, published):
    with torch.device('meta'):
        model = classifier(arch)
    assert sum(p.numel() for p in model.parameters()) == expected
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert f'{backbone / 1e6:.0f}' == published


def test_flops_of_tiny():
    counted = get_model_complexity_info(
        classifier('tiny').eval(),
        (3, 224, 224),
        show_table=False,
        show_arch=False,
    )
    assert counted['flops'] / 1e9 == pytest.approx(5.627, abs=5e-4)


@pytest.mark.parametrize('size', [(64, 64), (90, 58), (4, 4)], ids=str)
def test_outputs_are_channels_first_at_each_stride(size):
    model = VMamba('atto', out_indices=(0, 1, 2, 3)).eval()
    outputs = model(torch.randn(2, 3, *size))
    height, width = size[0] // 4, size[1] // 4
    for channels, y in zip((16, 32, 64, 128), outputs, strict=True):
        assert y.shape == (2, channels, height, width)
        height, width = (height + 1) // 2, (width + 1) // 2


def test_mixer_equals_the_plain_reference():
    torch.manual_seed(0)
    model = VMamba('atto', scan_backend='naive').double()
    mixer = model.stages[0][1].mixer
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(16, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = ss2d(x.permute(1, 2, 0), mixer.state_dict())
        torch.testing.assert_close(mixer(x[None])[0], expected.movedim(-1, 0))


def test_every_block_scans_and_none_normalises_batches():
    model = VMamba('atto')
    kinds = {type(b.mixer).__name__ for s in model.stages for b in s}
    assert kinds == {'SS2D'}
    assert not any(b.fusion for s in model.stages for b in s)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_every_parameter_has_a_gradient():
    model = VMamba('atto', out_indices=(1, 2), drop_path_rate=0.1)
    outputs = model(torch.randn(2, 3, 32, 40))
    sum(y.square().mean() * torch.rand(()) for y in outputs).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_built_by_name_with_a_custom_arch():
    model = MODELS.build(
        dict(
            type='VMamba',
            arch=dict(channels=[8, 24, 32], depths=[1, 2, 1]),
            in_channels=5,
            out_indices=(0, 2),
            d_state=4,
            frozen_stages=1,
            with_cp=True,
        )
    )
    a, b = model(torch.randn(1, 5, 16, 16))
    assert a.shape == (1, 8, 4, 4) and b.shape == (1, 32, 1, 1)
    assert not model.stages[0][0].norm.weight.requires_grad


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "atto, tiny, small, base or a dict.*'huge'"),
        (dict(arch=dict(channels=[8])), 'exactly the keys channels and'),
        (dict(out_indices=(0, 4)), r'from 0 to 3.*\(0, 4\)'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must lie in \[0, 1\)'),
        (dict(frozen_stages=5), 'frozen_stages must be -1 to 4, got 5'),
        (dict(scan_backend='fpga'), "'fpga'"),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VMamba(**{'arch': 'atto'} | options)


@pytest.mark.parametrize('option', ['step_size', 'block_types', 'norm_eval'])
def test_options_of_efficientvmamba_alone_are_refused(option):
    with pytest.raises(ValueError, match=option):
        MODELS.build(dict(type='VMamba', arch='atto', **{option: 2}))


def test_pretrained_weights_of_another_size_are_refused(tmp_path):
    torch.save(VMamba('atto').state_dict(), tmp_path / 'a.pth')
    settings = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    VMamba('atto', init_cfg=settings).init_weights()
    deeper = dict(channels=[16, 32, 64, 128], depths=[2, 2, 2, 1])
    with pytest.raises(ValueError, match='this VMamba: 13 missing'):
        VMamba(deeper, init_cfg=settings).init_weights()
