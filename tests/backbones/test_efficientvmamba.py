import copy

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from evmamba_mm import EfficientVMamba

CLASSIFIER_PARAMETERS = [
    ('tiny', 6_493_660),
    ('small', 11_273_688),
    ('base', 33_717_136),
]


@pytest.mark.parametrize(('arch', 'expected'), CLASSIFIER_PARAMETERS)
def test_parameters_with_the_hosts_neck_and_head(arch, expected):
    registry = pytest.importorskip('mmpretrain.registry').MODELS
    import mmpretrain.models  # noqa: F401

    backbone = dict(type='EfficientVMamba', arch=arch)
    width = dict(tiny=384, small=512, base=768)[arch]
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=width)
    config = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=head,
    )
    with torch.device('meta'):
        model = registry.build(config)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    'size', [(64, 64), (90, 58), (4, 4), (5, 31)], ids=str
)
def test_outputs_are_channels_first_at_each_stride(size):
    model = EfficientVMamba('atto', out_indices=(0, 1, 2, 3)).eval()
    outputs = model(torch.randn(2, 3, *size))
    height, width = size[0] // 4, size[1] // 4
    for channels, y in zip((16, 32, 64, 128), outputs, strict=True):
        assert y.shape == (2, channels, height, width)
        assert y.is_contiguous()
        height, width = (height + 1) // 2, (width + 1) // 2


@pytest.mark.parametrize(
    'memory_format', [torch.contiguous_format, torch.channels_last], ids=str
)
def test_maps_between_blocks_are_channels_last(memory_format):
    model, seen = EfficientVMamba('atto', out_indices=(0, 3)), []

    def look(module, _, y):
        seen.append(y.is_contiguous(memory_format=torch.channels_last))

    blocks = [b for stage in model.stages for b in stage]
    for module in (model.patch_embed, *blocks, *model.downsamples):
        module.register_forward_hook(look)
    image = torch.randn(2, 3, 80, 72).to(memory_format=memory_format)
    outputs = model(image)
    assert len(seen) == 1 + len(blocks) + 3 and all(seen)
    assert all(y.is_contiguous() for y in outputs)


def test_meta_tensors_pass():
    with torch.device('meta'):
        model = EfficientVMamba('base', out_indices=(0, 1, 2, 3))
        outputs = model(torch.empty(2, 3, 224, 160))
    shapes = [tuple(y.shape) for y in outputs]
    assert shapes == [
        (2, 96, 56, 40),
        (2, 192, 28, 20),
        (2, 384, 14, 10),
        (2, 768, 7, 5),
    ]
    assert all(y.is_meta for y in outputs)


@pytest.mark.parametrize(
    'out_indices', [-1, 3, (0,), (1, 3), (0, 1, 2)], ids=str
)
@pytest.mark.parametrize(
    'block_types',
    [
        ('evss', 'evss', 'inverted_residual', 'inverted_residual'),
        ('es2d',) * 4,
        ('ss2d', 'evss', 'es2d', 'evss'),
    ],
    ids='-'.join,
)
def test_every_parameter_has_a_gradient(out_indices, block_types):
    model = EfficientVMamba(
        'atto', out_indices=out_indices, block_types=block_types
    )
    outputs = model(torch.randn(2, 3, 32, 40))
    sum(y.square().mean() * torch.rand(()) for y in outputs).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_custom_arch_and_in_channels():
    arch = dict(channels=[8, 24], depths=[1, 2])
    model = MODELS.build(
        dict(
            type='EfficientVMamba',
            arch=arch,
            in_channels=5,
            out_indices=(0, 1),
            block_types=('evss', 'inverted_residual'),
            step_size=3,
            d_state=4,
        )
    )
    a, b = model(torch.randn(1, 5, 20, 24))
    assert a.shape == (1, 8, 5, 6) and b.shape == (1, 24, 3, 3)


def test_drop_path_rises_linearly():
    model = EfficientVMamba('atto', drop_path_rate=0.3)
    rates = [b.drop_path.drop_prob for s in model.stages for b in s]
    assert rates == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3])


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen):
    model = EfficientVMamba(
        'atto', out_indices=(0, 1, 2, 3), frozen_stages=frozen
    ).train()
    frozen_prefixes = ['patch_embed.'] if frozen >= 0 else []
    for i in range(max(0, frozen)):
        frozen_prefixes += [f'stages.{i}.', f'norm{i}.']
    for i in range(max(0, frozen - 1)):
        frozen_prefixes.append(f'downsamples.{i}.')
    for name, parameter in model.named_parameters():
        expected = not name.startswith(tuple(frozen_prefixes))
        assert parameter.requires_grad == expected, name
    for i, stage in enumerate(model.stages):
        assert stage.training == (i >= frozen)
    before = copy.deepcopy(dict(model.named_buffers()))
    outputs = model(torch.randn(2, 3, 32, 32))
    for name, buffer in model.named_buffers():
        if name.startswith(tuple(frozen_prefixes)):
            assert torch.equal(buffer, before[name]), name
    if frozen < 4:
        outputs[-1].sum().backward()


def test_norm_eval_keeps_running_statistics():
    model = EfficientVMamba('atto', norm_eval=True).train()
    before = copy.deepcopy(dict(model.named_buffers()))
    model(torch.randn(2, 3, 32, 32))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms)
    assert all(m.weight.requires_grad for m in norms)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_forward_and_backward(dtype):
    torch.manual_seed(0)
    model = EfficientVMamba('atto', out_indices=(0, 3)).eval()
    image = torch.randn(1, 3, 64, 64)
    expected = model(image)
    with torch.autocast('cpu', dtype=dtype):
        outputs = model(image)
    for y, y32 in zip(outputs, expected, strict=True):
        assert (y.float() - y32).norm() / y32.norm() < 5e-2
    sum(y.float().square().mean() for y in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "atto, tiny, small, base.*'huge'"),
        (dict(arch=dict(channels=[8])), 'exactly the keys channels and'),
        (
            dict(arch=dict(channels=[8, 0], depths=[1, 1])),
            "arch\\['channels'\\] must be a list of positive integers",
        ),
        (
            dict(arch=dict(channels=[8, 16], depths=[1])),
            'as many channels as depths',
        ),
        (dict(out_indices=(0, 4)), r'from 0 to 3.*\(0, 4\)'),
        (dict(out_indices=(2, 1)), 'increasing stages'),
        (dict(out_indices=()), 'increasing stages'),
        (dict(in_channels=0), 'in_channels must be an integer of at least 1'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must lie in \[0, 1\)'),
        (dict(frozen_stages=5), 'frozen_stages must be -1 to 4, got 5'),
        (dict(scan_backend='cudnn'), "auto, naive, torch.*'cudnn'"),
        (dict(step_size=0), 'step_size must be an integer of at least 1'),
        (dict(block_types=('evss',) * 3), 'block_types must name 4 stages'),
        (dict(block_types=('evss', 'a', 'a', 'a')), 'each one of evss, es2d'),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientVMamba(**{'arch': 'atto'} | options)


def test_a_misspelt_option_is_refused():
    with pytest.raises(ValueError, match='window_size'):
        MODELS.build(dict(type='EfficientVMamba', window_size=2))
