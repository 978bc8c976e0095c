"""Options of EfficientVMamba's constructor that shape its blocks."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from evmamba_mm import EfficientVMamba
from evmamba_mm.backbones import Vim, VMamba
from evmamba_mm.backbones.stages import BLOCKS
from evmamba_mm.layers import SS2D, EVSSBlock, InvertedResidual

SCANS = ('evss', 'es2d', 'ss2d', 'evss')
BOTH = ('evss', 'evss', 'inverted_residual', 'inverted_residual')


def build(block_types=BOTH, **options):
    return EfficientVMamba('atto', block_types=block_types, **options)


def first_blocks(model):
    return [stage[0] for stage in model.stages]


def mixers(model):
    return [b.mixer for b in first_blocks(model) if isinstance(b, EVSSBlock)]


READERS = {
    'step_size': lambda b: b.mixer.step_size,
    'd_state': lambda b: b.mixer.A_logs.shape[1],
    'expand_ratio': lambda b: (
        b.mixer.out_proj.in_features // b.mixer.out_proj.out_features
    ),
    'dt_rank': lambda b: b.mixer.dt_projs_weight.shape[2],
    'se_ratio': lambda b: (
        b.se.global_reduce.out_features / b.se.global_reduce.in_features
    ),
    'inverted_expand_ratio': lambda b: (
        b.conv_pw[0].out_channels // b.conv_pw[0].in_channels
    ),
    'inverted_se_ratio': lambda b: (
        b.se.conv_reduce.out_channels / b.se.conv_reduce.in_channels
    ),
}
VALUES = {
    'step_size': (3, [1, 2, 3, 4]),
    'd_state': (2, [1, 2, 4, 8]),
    'expand_ratio': (1, [1, 2, 3, 1]),
    'dt_rank': (3, [1, 2, 3, 4]),
    'se_ratio': (0.25, [0.125, 0.25, 0.5, 1.0]),
    'inverted_expand_ratio': (2, [1, 2, 3, 6]),
    'inverted_se_ratio': (0.25, [0.125, 0.25, 0.5, 1.0]),
}


@pytest.mark.parametrize('name', VALUES)
def test_one_value_serves_every_stage_and_a_list_one_each(name):
    kind = 'inverted_residual' if 'inverted' in name else 'evss'
    value, by_stage = VALUES[name]
    for given, expected in ((value, [value] * 4), (by_stage, by_stage)):
        model = build((kind,) * 4, **{name: given})
        found = [READERS[name](block) for block in first_blocks(model)]
        assert found == expected
        (y,) = model(torch.randn(2, 3, 64, 64))
        assert y.isfinite().all()


def test_dt_rank_may_be_left_open_in_some_stages():
    model = build(SCANS, dt_rank=[None, 5, None, 1])
    ranks = [m.dt_projs_weight.shape[2] for m in mixers(model)]
    assert ranks == [1, 5, 4, 1]


def test_a_tuple_is_a_list():
    model = build(d_state=(4, 8, 16, 16))
    assert [m.A_logs.shape[1] for m in mixers(model)] == [4, 8]


def activations(model):
    """Kinds of activation in mixers, EVSS blocks, inverted residuals."""
    kinds = (nn.SiLU, nn.GELU, nn.ReLU, nn.Hardswish, nn.LeakyReLU, nn.ELU)
    found = dict(mixer=set(), evss=set(), inverted=set())
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            block = model.get_submodule('.'.join(name.split('.')[:3]))
            if isinstance(block, InvertedResidual):
                place = 'inverted'
            else:
                place = 'mixer' if '.mixer.' in name else 'evss'
            found[place].add(type(module))
    return found


def test_activations_of_the_released_model():
    assert activations(build()) == dict(
        mixer={nn.SiLU}, evss={nn.GELU}, inverted={nn.ReLU}
    )


def test_activations_by_config():
    model = build(
        mixer_act_cfg=dict(type='Hardswish'),
        act_cfg=dict(type='LeakyReLU', negative_slope=0.2),
        inverted_act_cfg=dict(type=nn.ELU),
    )
    assert activations(model) == dict(
        mixer={nn.Hardswish}, evss={nn.LeakyReLU}, inverted={nn.ELU}
    )
    assert model.stages[0][0].se.act.negative_slope == 0.2
    model(torch.randn(2, 3, 64, 64))[0].sum().backward()


def test_a_block_of_ones_own(monkeypatch):
    def build_block(options, drop_path_rate):
        mixer = SS2D(options.channels, directions=('rows',))
        return EVSSBlock(options.channels, mixer, False, drop_path_rate)

    with pytest.raises(ValueError, match='got .*rows_alone'):
        build(('rows_alone',) * 4)
    monkeypatch.setitem(BLOCKS, 'rows_alone', build_block)
    model = build(('rows_alone', *BOTH[1:]))
    assert model.stages[0][0].mixer.directions == ('rows',)
    assert 'rows_alone' in EfficientVMamba.BLOCK_TYPES


def test_an_activation_of_mmengines_registry():
    @MODELS.register_module('TestOnlyCube')
    class Cube(nn.Module):
        def forward(self, x):
            return x**3

    try:
        model = build(act_cfg=dict(type='TestOnlyCube'))
    finally:
        MODELS.module_dict.pop('TestOnlyCube')
    assert isinstance(model.stages[0][0].se.act, Cube)


@pytest.mark.parametrize(
    'name', ['mixer_act_cfg', 'act_cfg', 'inverted_act_cfg']
)
@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(type='NoSuchAct'), 'class of torch.nn or of mmengine.*NoSuch'),
        (dict(type='functional'), 'class of torch.nn.*functional'),
        (dict(inplace=True), "dict such as dict\\(type='GELU'\\)"),
        (dict(type='ReLU', inplace=True), 'not set inplace'),
        ('GELU', "dict such as dict\\(type='GELU'\\), got 'GELU'"),
        (None, 'got None'),
    ],
    ids=['unknown', 'no-class', 'no-type', 'inplace', 'name', 'none'],
)
def test_an_illegal_activation_is_named(name, cfg, message):
    with pytest.raises(ValueError, match=f'{name} must.*{message}'):
        build(**{name: cfg})


@pytest.mark.parametrize('name', VALUES)
def test_a_list_of_another_length_is_refused(name):
    with pytest.raises(ValueError, match=f'{name} must be.*list of 4'):
        build(**{name: [1, 1, 1]})


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        (name, value)
        for name in VALUES
        for value in (0, -1, 'two', [2, 2, 0, 2], None, True)
        if (name, value) != ('dt_rank', None)
    ],
)
def test_an_illegal_value_is_named(name, value):
    with pytest.raises(ValueError, match=f'^{name} must be'):
        build(**{name: value})


def test_fused_is_kept():
    assert [build(fused=f).fused for f in ('auto', True, False)] == [
        'auto',
        True,
        False,
    ]


def test_an_illegal_fused_is_named():
    with pytest.raises(ValueError, match="fused must be.*got 'triton'"):
        build(fused='triton')


@pytest.mark.parametrize('fused', [False, 'auto'])
def test_a_cpu_runs_the_modules(fused):
    model, calls = build(fused=fused), []
    leaves = [m for m in model.modules() if not list(m.children())]
    for module in leaves:
        module.register_forward_hook(lambda m, *_: calls.append(m))
    model(torch.randn(2, 3, 64, 64))
    assert set(calls) == set(leaves)


@pytest.mark.parametrize('forced', [True, 'environment'])
def test_forced_kernels_are_refused_on_a_cpu(forced, monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '0')
    if forced == 'environment':
        monkeypatch.setenv('EVMAMBA_FUSED', 'true')
    model = build(fused='auto' if forced == 'environment' else True)
    with pytest.raises(ValueError, match='fused=True.*PatchEmbed.*cpu'):
        model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    'options',
    [
        dict(block_types=5),
        dict(block_types=None),
        dict(out_indices=None),
        dict(out_indices=2.0),
        dict(out_indices=True),
        dict(frozen_stages=1.0),
        dict(se_ratio=float('inf')),
        dict(act_cfg=dict(type='GELU', foo=1)),
        dict(act_cfg=dict(type='Linear')),
        dict(act_cfg=dict(type=torch.relu)),
        dict(act_cfg=dict(type=5)),
    ],
    ids=lambda options: '-'.join(options),
)
def test_an_illegal_option_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        EfficientVMamba('atto', **options)


def test_an_image_of_another_dtype_is_refused():
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match='image is in torch.float64'):
        EfficientVMamba('atto')(image)


def test_a_switch_that_is_set_later_is_checked():
    model = EfficientVMamba('atto')
    model.fused = 'yes'
    with pytest.raises(ValueError, match="fused must be.*'yes'"):
        model(torch.randn(1, 3, 64, 64))


HUGE = 10**9


@pytest.mark.parametrize(
    'option, value, most',
    [
        *(('in_channels', HUGE, 16384), ('dt_rank', HUGE, 16384)),
        *(('d_state', [16, 16, HUGE, 16], 4096), ('d_state', 4097, 4096)),
        *(('expand_ratio', HUGE, 256), ('inverted_expand_ratio', HUGE, 256)),
        *(('se_ratio', 1e9, 256), ('inverted_se_ratio', [1e99] * 4, 256)),
        ('arch', dict(channels=[HUGE] * 4, depths=[1] * 4), 16384),
        ('arch', dict(channels=[16] * 4, depths=[1, 1, 1, HUGE]), 1024),
    ],
)
def test_absurdly_large_size(option, value, most):
    said = rf'{option}.* at most {most}.*, got .*1(0|e|$)|4097'
    with pytest.raises(ValueError, match=said):
        EfficientVMamba(**{'arch': 'atto', option: value})


@pytest.mark.parametrize('kind', [VMamba, Vim])
@pytest.mark.parametrize('option', ['in_channels', 'd_state'])
def test_absurdly_large_size_of_peers(kind, option):
    with pytest.raises(ValueError, match=f'{option} must .* at most .*{HUGE}'):
        kind('atto', **{option: HUGE})


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(img_size=HUGE), 'img_size must .* at most 16384, got'),
        (dict(img_size=16000, patch_size=1), 'at most 1024 times patch_size'),
        (dict(img_size=HUGE, patch_size=HUGE), 'img_size must|patch_size mu'),
        (dict(arch=dict(channels=HUGE, depth=1)), 'at most 16384 and'),
        (dict(arch=dict(channels=32, depth=HUGE)), 'and 1024, got'),
    ],
)
def test_absurdly_large_vim(settings, said):
    with pytest.raises(ValueError, match=said):
        Vim(**settings)
