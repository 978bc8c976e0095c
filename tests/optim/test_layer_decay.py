from collections import defaultdict

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from evmamba_mm import EfficientVMamba
from evmamba_mm.backbones import Vim, VMamba

from ..test_rooms import ROOT

CONFIGS = {
    'mmpretrain': 'evmamba-tiny_16xb128-amp-300e_in1k.py',
    'mmdet': 'retinanet_evmamba-tiny_fpn_8xb2-1x_coco.py',
    'mmseg': 'upernet_evmamba-tiny_4xb4-160k_ade20k-512x512.py',
}


def wrapper_config(constructor, **paramwise):
    return dict(
        constructor=constructor,
        base_constructor='LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=0.5, **paramwise),
    )


def build(model, config):
    if config['constructor'] != 'GroupedOptimWrapperConstructor':
        config.pop('base_constructor')
    return build_optim_wrapper(model, config).optimizer


def settings_of(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for p in group['params']
    }


@pytest.mark.parametrize('host', CONFIGS)
def test_rates_fall_towards_the_stem_in_each_toolbox(host):
    pytest.importorskip(host, reason=f'{host} is not installed')
    config = Config.fromfile(ROOT / 'configs' / host / CONFIGS[host])
    config.model.backbone.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(host):
        model = MODELS.build(config.model)
    grouped = build(model, wrapper_config('GroupedOptimWrapperConstructor'))
    found = [p for group in grouped.param_groups for p in group['params']]
    assert len(found) == len(set(found)) == len(list(model.parameters()))
    # A depth each of 10 blocks, the stem, and the head with the norms.
    assert len(grouped.param_groups) == 12
    rates = settings_of(model, grouped)
    plain = build(model, wrapper_config('LayerDecayOptimWrapperConstructor'))
    assert settings_of(model, plain) == rates
    by_part = defaultdict(set)
    for name, (rate, _) in rates.items():
        part = name.split('.')
        if part[:2] == ['backbone', 'stages']:
            by_part[int(part[2]), int(part[3])].add(rate)
        else:
            by_part[part[1] if part[0] == 'backbone' else 'head'].add(rate)
    assert by_part['patch_embed'] == {0.5**11}
    assert by_part['head'] == {1.0}
    stages = [(0, 2), (1, 2), (2, 4), (3, 2)]
    blocks = [(s, b) for s, depth in stages for b in range(depth)]
    assert [by_part[block] for block in blocks] == [
        {0.5 ** (10 - i)} for i in range(10)
    ]
    assert by_part['downsamples'] == {0.5**8, 0.5**6, 0.5**2}


@pytest.mark.parametrize('kind', [EfficientVMamba, VMamba, Vim])
def test_every_depth_is_taken(kind):
    model = kind('atto')
    depths = {model.get_layer_depth(n) for n, _ in model.named_parameters()}
    (count,) = {count for _, count in depths}
    assert {depth for depth, _ in depths} == set(range(count))
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (
        count - 1,
        count,
    )


def test_the_bias_of_the_scan_is_a_bias():
    model = EfficientVMamba('atto')
    kind = 'LayerDecayOptimWrapperConstructor'
    config = wrapper_config(kind, bias_decay_mult=0.0, bias_lr_mult=2.0)
    settings = settings_of(model, build(model, config))
    bias = settings['stages.0.0.mixer.dt_projs_bias']
    weight = settings['stages.0.0.mixer.dt_projs_weight']
    assert bias == (2 * weight[0], 0.0)
    assert weight[1] == 0.1
    own = {'dt_projs_bias': dict(decay_mult=3.0)}
    config = wrapper_config(kind, bias_decay_mult=0.0, custom_keys=own)
    settings = settings_of(model, build(model, config))
    rate = settings['stages.0.0.mixer.dt_projs_bias'][1]
    assert rate == pytest.approx(0.3)


@pytest.mark.parametrize('rate', [None, 0, 1.5, 'half'])
def test_illegal_rate(rate):
    config = wrapper_config('LayerDecayOptimWrapperConstructor')
    config['paramwise_cfg']['layer_decay_rate'] = rate
    with pytest.raises(ValueError, match='layer_decay_rate must be above 0'):
        build(EfficientVMamba('atto'), config)


def test_a_model_that_knows_no_depths():
    config = wrapper_config('LayerDecayOptimWrapperConstructor')
    with pytest.raises(ValueError, match='Linear has no backbone'):
        build(torch.nn.Linear(2, 2), config)
