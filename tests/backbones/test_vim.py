import copy

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.registry import MODELS

from evmamba_mm.analysis import selective_scan_flops
from evmamba_mm.backbones import VIM_ARCHS, Vim

from .peer_references import vim_tokens


def classifier(arch):
    """The host's classifier, as the configs build it."""
    registry = pytest.importorskip('mmpretrain.registry').MODELS
    import mmpretrain.models  # noqa: F401

    width = VIM_ARCHS[arch].channels
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=width)
    backbone = dict(type='Vim', arch=arch)
    return registry.build(
        dict(type='ImageClassifier', backbone=backbone, neck=None, head=head)
    )


# Published: 7 M, 26 M and 98 M.
@pytest.mark.parametrize(
    ('arch', 'expected'),
    [('tiny', 7_148_008), ('small', 25_796_584), ('base', 97_598_440)],
)
def test_parameters_of_the_classifier(arch, expected):
    with torch.device('meta'):
        model = classifier(arch)
    assert sum(p.numel() for p in model.parameters()) == expected


def flops(model):
    return get_model_complexity_info(
        model.eval(), (3, 224, 224), show_table=False, show_arch=False
    )['flops']


@pytest.mark.parametrize(
    ('arch', 'counted', 'published'),
    [('tiny', 1.819, '1.5'), ('small', 5.904, '5.1')],
)
def test_flops(arch, counted, published):
    """By the counter of the tables, and by Vim's own count.

    Vim's paper counts 4 * L * D * N for a scan. With that, and without the
    projections to step sizes, its two published columns come out; that they
    were left out is inferred from there.
    """
    total = flops(classifier(arch))
    assert total / 1e9 == pytest.approx(counted, abs=5e-4)
    channels, depth = VIM_ARCHS[arch].channels, VIM_ARCHS[arch].depth
    length, inner, states = 197, 2 * channels, 16
    scan = selective_scan_flops(1, length, inner, states)
    step_sizes = length * inner * (channels // 16)
    by_vim = 4 * length * inner * states
    own = total - 2 * depth * (scan + step_sizes - by_vim)
    assert f'{own / 1e9:.1f}' == published


def randomised(model):
    """The model in fp64 with weights of a size that shows each of them."""
    torch.manual_seed(0)
    for name, parameter in model.double().named_parameters():
        if 'A_' not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize('grid', [4, 3], ids=['even', 'odd'])
def test_tokens_equal_the_plain_reference(grid):
    arch = dict(channels=32, depth=2)
    options = dict(arch=arch, img_size=8 * grid, patch_size=8)
    model = randomised(Vim(**options, scan_backend='naive')).eval()
    maps = Vim(**options, out_type='featmap').double().eval()
    maps.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 8 * grid, 8 * grid, dtype=torch.float64)
    with torch.no_grad():
        (tokens,), (feature_map,) = model(image), maps(image)
    for index in range(2):
        expected, middle = vim_tokens(model.state_dict(), image[index], 2)
        torch.testing.assert_close(tokens[index], expected[middle])
        patches = torch.cat([expected[:middle], expected[middle + 1 :]])
        torch.testing.assert_close(
            feature_map[index], patches.T.view(32, grid, grid)
        )


@pytest.mark.parametrize('size', [(32, 32), (48, 32), (16, 70)], ids=str)
def test_other_sizes_are_taken(size):
    model = Vim(
        'atto', img_size=32, out_indices=(1, 3), out_type='featmap'
    ).eval()
    for y in model(torch.randn(2, 3, *size)):
        assert y.shape == (2, 32, size[0] // 16, size[1] // 16)
        assert y.is_contiguous()


def test_position_embedding_keeps_its_layout_at_another_size():
    model = Vim('atto', img_size=64)
    ramp = torch.linspace(0, 1, 16)[:, None].expand(16, 32)
    with torch.no_grad():
        model.pos_embed[0] = torch.cat(
            [ramp[:8], torch.full((1, 32), 9.0), ramp[8:]]
        )
        positions = model._positions(8, 8)[0, :, 0]
    assert positions[32] == 9
    patches = torch.cat([positions[:32], positions[33:]]).view(8, 8)
    assert patches.max() < 1.5
    assert (patches.diff(dim=0) > 0).all()


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = Vim('tiny')
    mixer = model.layers[0].mixer
    states = torch.arange(1, 17).float()
    for A_log in (mixer.A_log, mixer.A_b_log):
        torch.testing.assert_close(A_log.exp(), states.expand(384, 16))
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 0.00099 < dt.min() < 0.0015 and 0.07 < dt.max() < 0.1001
    assert not mixer.dt_proj_b.bias.any()
    assert (mixer.D == 1).all() and (mixer.D_b == 1).all()
    deviations = {
        'out_proj': (3 * 384 * 24) ** -0.5,
        'in_proj': (3 * 192) ** -0.5,
        'dt_proj_b': (3 * 12) ** -0.5,
    }
    for name, expected in deviations.items():
        weight = getattr(mixer, name).weight
        assert weight.std().item() == pytest.approx(expected, rel=0.03)
    stem = model.patch_embed.proj
    assert stem.weight.std().item() == pytest.approx(768**-0.5, rel=0.03)
    assert not stem.bias.any()
    for token in (model.pos_embed, model.cls_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize('out_type', ['cls_token', 'featmap'])
@pytest.mark.parametrize('out_indices', [-1, (0, 2)], ids=str)
def test_every_parameter_has_a_gradient(out_type, out_indices):
    model = Vim(
        'atto', img_size=32, out_indices=out_indices, out_type=out_type
    )
    outputs = model(torch.randn(2, 3, 32, 32))
    sum(y.square().mean() * torch.rand(()) for y in outputs).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_both_directions_reach_the_class_token():
    model = Vim('atto', img_size=64).eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    model(image)[0].square().sum().backward()
    patches = image.grad.abs().sum(1).unfold(1, 16, 16).unfold(2, 16, 16)
    assert (patches.sum((-1, -2)) > 0).all()


def test_drop_path_rises_linearly():
    model = Vim('atto', drop_path_rate=0.3)
    rates = [layer.drop_path.drop_prob for layer in model.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_with_cp_changes_nothing_but_memory():
    torch.manual_seed(0)
    plain = Vim('atto', img_size=32, drop_path_rate=0.5)
    recomputing = copy.deepcopy(plain)
    recomputing.with_cp = True
    image = torch.randn(3, 3, 32, 32)
    results = []
    for model in (plain, recomputing):
        torch.manual_seed(1)
        (y,) = model.train()(image)
        y.square().mean().backward()
        results.append([y, *(p.grad for p in model.parameters())])
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(expected, actual)


@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages(frozen):
    model = Vim('atto', img_size=32, frozen_stages=frozen).train()
    prefixes = []
    if frozen >= 0:
        prefixes = ['patch_embed.', 'cls_token', 'pos_embed']
        prefixes += [f'layers.{i}.' for i in range(frozen)]
    if frozen == 4:
        prefixes.append('norm_f.')
    for name, parameter in model.named_parameters():
        expected = not name.startswith(tuple(prefixes))
        assert parameter.requires_grad == expected, name
    assert [layer.training for layer in model.layers] == [
        i >= frozen for i in range(4)
    ]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_forward_and_backward(dtype):
    torch.manual_seed(0)
    model = Vim('atto', img_size=32).eval()
    image = torch.randn(2, 3, 32, 48)
    (expected,) = model(image)
    with torch.autocast('cpu', dtype=dtype):
        (y,) = model(image)
    assert (y.float() - expected).norm() / expected.norm() < 5e-2
    y.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "atto, tiny, small, base.*'huge'"),
        (dict(arch=dict(channels=[8], depth=1)), 'positive integers'),
        (dict(arch=dict(channels=8)), 'exactly channels and depth'),
        (dict(out_indices=(0, 4)), r'from 0 to 3.*\(0, 4\)'),
        (dict(out_type='raw'), "cls_token, featmap, got 'raw'"),
        (dict(img_size=100), 'multiple of patch_size 16, got 100'),
        (dict(patch_size=0), 'patch_size must be an integer'),
        (dict(in_channels=0), 'in_channels must be an integer'),
        (dict(d_state=0), 'd_state must be an integer'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must lie in \[0, 1\)'),
        (dict(drop_path_rate='a'), r'drop_path_rate must lie in \[0, 1\)'),
        (dict(frozen_stages=5), 'frozen_stages must be -1 to 4, got 5'),
        (dict(scan_backend='fpga'), "'fpga'"),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Vim(**{'arch': 'atto'} | options)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (torch.zeros(1, 4, 32, 32), r'\(B, 3, H, W\), got \(1, 4, 32, 32\)'),
        (torch.zeros(1, 3, 15, 32), 'at least 16 pixels.*15x32'),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 'normalise it first'),
        (torch.zeros(1, 3, 32, 32, device='meta'), 'the image is on meta'),
    ],
    ids=['channels', 'small', 'integer', 'device'],
)
def test_an_illegal_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        Vim('atto', img_size=32)(image)


def test_pretrained_weights_of_another_size_are_refused(tmp_path):
    weights = Vim('atto', img_size=32).state_dict()
    torch.save(weights, tmp_path / 'a.pth')
    config = dict(
        type='Vim',
        arch='atto',
        img_size=32,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')),
    )
    model = MODELS.build(config)
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    with pytest.raises(ValueError, match='1 of another shape.*pos_embed'):
        MODELS.build(config | dict(img_size=64)).init_weights()
