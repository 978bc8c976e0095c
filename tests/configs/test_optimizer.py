"""Which parameters decay, how the learning rate runs, what is averaged."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .leaves import LEAVES, read_name

SCAN = ('A_logs', 'Ds', 'x_proj_weight', 'dt_projs_weight', 'dt_projs_bias')
TINY = [stem for stem in LEAVES if read_name(stem).size == 'tiny']
of_tiny = pytest.mark.parametrize('leaf', TINY, indirect=True)
# A stand-in for an epoch of the real data; long enough for a warm-up of 1000
# iterations to end inside the first.
EPOCH_LENGTH = 1100


def leaves_of(host):
    stems = [s for s in LEAVES if LEAVES[s].parent.name == host]
    return pytest.mark.parametrize('leaf', stems, indirect=True)


def build_wrapper(config, model):
    """The optimizer of the config; without AMP, which asks for a GPU."""
    settings = copy.deepcopy(config.optim_wrapper)
    settings.type = 'OptimWrapper'
    return build_optim_wrapper(model, settings)


def decay_of_each(config, model):
    """Weight decay of each parameter, by its name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_wrapper(config, model).optimizer.param_groups
    decays = {
        names[id(p)]: group['weight_decay']
        for group in groups
        for p in group['params']
    }
    assert decays.keys() == set(names.values())
    rates = {group['lr'] for group in groups}
    assert rates == {config.optim_wrapper.optimizer.lr}
    return decays


def decay_of_the_scan(decays):
    """What the parameters of the scan have in common, by their last name."""
    found = {leaf: set() for leaf in SCAN}
    for name, decay in decays.items():
        last = name.rpartition('.')[2]
        if last in found:
            found[last].add(decay)
    return {last: decay for last, (decay,) in found.items()}


def scan_decay(decay):
    return dict.fromkeys(SCAN, decay) | {'Ds': 0.0}


@leaves_of('mmpretrain')
def test_classifiers_decay_what_the_release_does(config, meta_model):
    decays = decay_of_each(config, meta_model)
    expected = {
        name: 0.0 if p.ndim == 1 or name.endswith('.bias') else 0.04
        for name, p in meta_model.named_parameters()
    }
    assert decays == expected
    assert decay_of_the_scan(decays) == scan_decay(0.04)


def names_of_norms(model):
    return {
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if isinstance(module, (_BatchNorm, nn.LayerNorm))
        for name, _ in module.named_parameters(recurse=False)
    }


@pytest.mark.parametrize(
    'leaf, decay',
    [(s, 0.05) for s in TINY if s.startswith('mask-rcnn')]
    + [(s, 0.01) for s in TINY if s.startswith('upernet')],
    indirect=['leaf'],
)
def test_norms_and_d_do_not_decay_in_dense_models(config, meta_model, decay):
    decays = decay_of_each(config, meta_model)
    norms = names_of_norms(meta_model)
    exempt = {name for name in decays if name.endswith('.Ds')} | norms
    assert {n for n, d in decays.items() if d == 0.0} == exempt
    assert {decays[n] for n in decays.keys() - exempt} == {decay}
    assert decay_of_the_scan(decays) == scan_decay(decay)
    assert any('conv_dw' in name for name in norms), 'no BatchNorm was found'


@pytest.mark.parametrize(
    'leaf', [s for s in TINY if s.startswith('retinanet')], indirect=True
)
def test_everything_decays_in_retinanet(config, meta_model):
    assert set(decay_of_each(config, meta_model).values()) == {1e-4}


@of_tiny
def test_gradients_are_clipped_in_classifiers_alone(leaf, config, meta_model):
    clip = build_wrapper(config, meta_model).clip_grad_kwargs
    classifier = LEAVES[leaf].parent.name == 'mmpretrain'
    assert clip == (dict(max_norm=1.0) if classifier else None)


@of_tiny
def test_drop_path(leaf, config):
    rate = 0.1 if LEAVES[leaf].parent.name == 'mmpretrain' else 0.2
    assert config.model.backbone.drop_path_rate == rate


@of_tiny
def test_statistics_of_batch_norm(leaf, config, meta_model):
    meta_model.train()
    training = {
        module.training
        for module in meta_model.backbone.modules()
        if isinstance(module, _BatchNorm)
    }
    host = LEAVES[leaf].parent.name
    assert training == {host != 'mmdet'}
    assert config.get('sync_bn') == ('torch' if host == 'mmseg' else None)


def learning_rates(config, epochs, epoch_length):
    """The learning rate of each iteration."""
    parameter = nn.Parameter(torch.zeros(1))
    lr = config.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([parameter], lr=lr)
    schedulers = []
    for settings in config.param_scheduler:
        settings = settings.copy()
        if settings.pop('convert_to_iter_based', False):
            scheduler = PARAM_SCHEDULERS.get(settings.pop('type'))
            settings.update(optimizer=optimizer, epoch_length=epoch_length)
            schedulers.append(scheduler.build_iter_from_epoch(**settings))
        else:
            schedulers.append(
                PARAM_SCHEDULERS.build(
                    settings, default_args=dict(optimizer=optimizer)
                )
            )
    rates = []
    for iteration in range(1, epochs * epoch_length + 1):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                scheduler.step()
    return rates


@leaves_of('mmpretrain')
def test_learning_rate_of_classifiers(leaf, config):
    name = read_name(leaf)
    small = name.dataset == 'tin50'
    epochs, top = (100, 50) if small else (300, 200)
    rates = learning_rates(config, epochs, epoch_length=10)
    peak = 1e-3 if small or 'paper' in name.tricks else 2e-3
    assert rates[0] == pytest.approx(1e-6 if small else 1e-7)
    assert rates[top] == pytest.approx(peak, rel=1e-3)
    assert max(rates) == pytest.approx(peak)
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(1e-6, rel=0.01)


@leaves_of('mmdet')
def test_learning_rate_of_detectors(leaf, config):
    steps = {'1x': (8, 11, 12), '3x': (27, 33, 36)}
    epochs = steps[read_name(leaf).schedule]
    warmup = 1000 if leaf.startswith('mask-rcnn') else 500
    rates = learning_rates(config, epochs[-1], EPOCH_LENGTH)
    assert rates[0] == pytest.approx(1e-7)
    assert rates[: warmup - 1] == sorted(rates[: warmup - 1])
    assert rates[warmup - 2] < 1e-4
    bounds = [warmup, *(epoch * EPOCH_LENGTH for epoch in epochs)]
    for i, rate in enumerate((1e-4, 1e-5, 1e-6)):
        part = rates[bounds[i] : bounds[i + 1]]
        assert (min(part), max(part)) == pytest.approx((rate, rate))


@pytest.mark.parametrize(
    'leaf', [s for s in TINY if s.startswith('upernet')][:1], indirect=True
)
def test_learning_rate_of_segmentors(config):
    rates = learning_rates(config, 1, epoch_length=160_000)
    assert rates[0] == pytest.approx(6e-11)
    assert rates[1500] == pytest.approx(6e-5)
    assert max(rates) == pytest.approx(6e-5)
    assert rates[80_750] == pytest.approx(3e-5, rel=1e-3)
    assert rates[-1] < 1e-9


@pytest.mark.parametrize(
    'leaf', ['evmamba-tiny_16xb128-amp-300e_in1k'], indirect=True
)
def test_average_of_classifiers(config):
    _, settings = config.custom_hooks
    # As the runner does.
    settings.pop('priority')
    hook = HOOKS.build(settings)
    assert hook.evaluate_on_ema
    assert hook.evaluate_on_origin
    net = nn.BatchNorm1d(1)
    average = MODELS.build(hook.ema_cfg, default_args=dict(model=net))
    average.update_parameters(net)
    for tensor in (net.weight.data, net.running_mean):
        tensor += 1
    average.update_parameters(net)
    assert average.module.weight.item() == pytest.approx(1 + 1e-4, abs=1e-6)
    assert average.module.running_mean.item() == pytest.approx(1e-4)
