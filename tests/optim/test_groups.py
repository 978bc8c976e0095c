import copy

import pytest
import torch
from mmengine.optim import (
    CosineAnnealingLR,
    DefaultOptimWrapperConstructor,
    build_optim_wrapper,
)
from torch import nn

from evmamba_mm import EfficientVMamba, GroupedOptimWrapperConstructor
from evmamba_mm.optim.groups import merge_equal_groups

NO_DECAY = dict(bias_decay_mult=0.0, flat_decay_mult=0.0)
LAYERWISE = dict(custom_keys={'0.': dict(lr_mult=0.1), '1.': dict(lr_mult=1)})


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def wrapper_of(module, constructor, paramwise, **optimizer):
    optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.5) | optimizer
    return build_optim_wrapper(
        module,
        dict(
            type='OptimWrapper',
            optimizer=optimizer,
            constructor=constructor,
            paramwise_cfg=paramwise,
        ),
    )


def train(module, wrapper, steps=3):
    schedule = CosineAnnealingLR(wrapper, T_max=10)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(5, 3, generator=generator)
        wrapper.update_params(module(x).square().mean())
        schedule.step()
    return schedule


def settings_by_parameter(module, wrapper):
    names = {p: name for name, p in module.named_parameters()}
    return {
        names[p]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }


@pytest.mark.parametrize(
    ('paramwise', 'groups'), [(NO_DECAY, 2), (LAYERWISE, 3), (None, 1)]
)
def test_settings_stay_and_groups_are_few(paramwise, groups):
    stock, ours = model(), model()
    old = wrapper_of(stock, 'DefaultOptimWrapperConstructor', paramwise)
    new = wrapper_of(ours, 'GroupedOptimWrapperConstructor', paramwise)
    assert len(new.optimizer.param_groups) == groups
    assert settings_by_parameter(stock, old) == settings_by_parameter(
        ours, new
    )
    train(stock, old)
    train(ours, new)
    for a, b in zip(stock.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_backbone_has_two_groups():
    backbone = EfficientVMamba('atto')
    stock = wrapper_of(backbone, 'DefaultOptimWrapperConstructor', NO_DECAY)
    ours = wrapper_of(backbone, 'GroupedOptimWrapperConstructor', NO_DECAY)
    assert len(stock.optimizer.param_groups) > 100
    assert len(ours.optimizer.param_groups) == 2
    assert settings_by_parameter(backbone, stock) == settings_by_parameter(
        backbone, ours
    )


def test_layer_decay_of_mmpretrain():
    mmpretrain = pytest.importorskip('mmpretrain')
    assert mmpretrain
    from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS

    vit = mmpretrain.get_model('deit-tiny_4xb256_in1k')
    found = []
    for grouped in (False, True):
        name = 'mmpretrain.LearningRateDecayOptimWrapperConstructor'
        cfg = dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.5))
        kind = name
        if grouped:
            kind, cfg['base_constructor'] = (
                'GroupedOptimWrapperConstructor',
                name,
            )
        build = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type=kind,
                optim_wrapper_cfg=cfg,
                paramwise_cfg=dict(layer_decay_rate=0.5),
            )
        )
        found.append(build(vit))
    stock, ours = found
    assert settings_by_parameter(vit, stock) == settings_by_parameter(
        vit, ours
    )
    # Thirteen layers and the head, with one decay each.
    assert len(ours.optimizer.param_groups) == 14


def test_checkpoint_with_the_old_groups_goes_on_as_it_would_have():
    stock = model()
    old = wrapper_of(stock, 'DefaultOptimWrapperConstructor', NO_DECAY)
    schedule = train(stock, old)
    ours = copy.deepcopy(stock)
    new = wrapper_of(ours, 'GroupedOptimWrapperConstructor', NO_DECAY)
    resumed = CosineAnnealingLR(new, T_max=10)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    resumed.load_state_dict(schedule.state_dict())
    assert len(new.optimizer.param_groups) == 2
    x = torch.randn(5, 3)
    for module, wrapper, steps in (
        (stock, old, schedule),
        (ours, new, resumed),
    ):
        for _ in range(3):
            wrapper.update_params(module(x).square().mean())
            steps.step()
    for a, b in zip(stock.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert settings_by_parameter(stock, old) == settings_by_parameter(
        ours, new
    )


def test_own_checkpoint_is_loaded():
    ours = model()
    wrapper = wrapper_of(ours, 'GroupedOptimWrapperConstructor', NO_DECAY)
    train(ours, wrapper)
    again = wrapper_of(
        copy.deepcopy(ours), 'GroupedOptimWrapperConstructor', NO_DECAY
    )
    again.load_state_dict(wrapper.state_dict())
    for a, b in zip(
        wrapper.optimizer.state.values(),
        again.optimizer.state.values(),
        strict=True,
    ):
        assert torch.equal(a['exp_avg'], b['exp_avg'])


def test_old_groups_of_several_rates_are_refused():
    stock = model()
    old = wrapper_of(stock, 'DefaultOptimWrapperConstructor', LAYERWISE)
    train(stock, old)
    new = wrapper_of(model(), 'GroupedOptimWrapperConstructor', LAYERWISE)
    with pytest.raises(
        ValueError, match='starting values.* differ.*constructor'
    ):
        new.load_state_dict(old.state_dict())


def test_groups_that_differ_in_the_checkpoint_are_refused():
    stock = model()
    old = wrapper_of(stock, 'DefaultOptimWrapperConstructor', NO_DECAY)
    for group in old.optimizer.param_groups:
        group['weight_decay'] = 0.1 * len(group['params'][0])
    new = wrapper_of(model(), 'GroupedOptimWrapperConstructor', NO_DECAY)
    with pytest.raises(ValueError, match='settings differ'):
        new.load_state_dict(old.state_dict())


def state_of(wrapper, key):
    """What the optimiser keeps of each parameter, by its id."""
    return {id(p): x[key] for p, x in wrapper.optimizer.state.items()}


def test_moments_find_their_parameters_under_other_settings():
    """After a change of paramwise_cfg that leaves as many groups."""
    layers = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))
    first, second = (
        dict(custom_keys={name: dict(decay_mult=0.0) for name in names})
        for names in (('0.', '1.'), ('1.', '2.'))
    )
    old = wrapper_of(layers, 'GroupedOptimWrapperConstructor', first)
    layers(torch.randn(3, 4)).square().sum().backward()
    old.step()
    new = wrapper_of(layers, 'GroupedOptimWrapperConstructor', second)
    with pytest.raises(ValueError, match='settings differ'):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    same = wrapper_of(layers, 'GroupedOptimWrapperConstructor', first)
    same.load_state_dict(copy.deepcopy(old.state_dict()))
    expected, actual = state_of(old, 'exp_avg'), state_of(same, 'exp_avg')
    for key, value in expected.items():
        assert torch.equal(actual[key], value)


def test_groups_in_another_order_are_refused_under_a_schedule():
    """A schedule keeps a starting value for each place in the list."""
    layers = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(2)))
    first, second = (
        dict(custom_keys={name: dict(lr_mult=0.1)}) for name in ('0.', '1.')
    )
    old = wrapper_of(layers, 'GroupedOptimWrapperConstructor', first)
    CosineAnnealingLR(old, T_max=10)
    layers(torch.randn(3, 4)).square().sum().backward()
    old.step()
    state = copy.deepcopy(old.state_dict())
    state['param_groups'].reverse()
    new = wrapper_of(layers, 'GroupedOptimWrapperConstructor', second)
    with pytest.raises(ValueError, match='starting values'):
        new.load_state_dict(state)


@pytest.mark.parametrize('paramwise', [NO_DECAY, None])
def test_form_of_the_step_is_that_of_the_optimizer_as_built(paramwise):
    stock = model()
    old = wrapper_of(stock, 'DefaultOptimWrapperConstructor', paramwise)
    train(stock, old)
    new = wrapper_of(
        copy.deepcopy(stock),
        'GroupedOptimWrapperConstructor',
        paramwise,
        fused=True,
    )
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert all(group['fused'] for group in new.optimizer.param_groups)
    scaler = torch.amp.GradScaler('cpu')
    parameter = new.optimizer.param_groups[0]['params'][0]
    scaler.scale(parameter.square().sum()).backward()
    scaler.step(new.optimizer)


@pytest.mark.parametrize('kind', ['Adagrad', 'RMSprop', 'SGD', 'Rprop'])
def test_other_optimizers_train_the_same(kind):
    found = []
    for constructor in (
        'DefaultOptimWrapperConstructor',
        'GroupedOptimWrapperConstructor',
    ):
        module = model()
        options = {} if kind == 'Rprop' else dict(weight_decay=0.5)
        wrapper = build_optim_wrapper(
            module,
            dict(
                optimizer=dict(type=kind, lr=0.01, **options),
                constructor=constructor,
                paramwise_cfg=NO_DECAY if options else None,
            ),
        )
        train(module, wrapper)
        found.append(list(module.parameters()))
    torch.testing.assert_close(found[1], found[0])


def test_an_optimizer_around_another_keeps_its_groups():
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    class Around(torch.optim.SGD):
        pass

    groups = [dict(params=[nn.Parameter(torch.ones(1))]) for _ in range(3)]
    outer = Around(groups, lr=0.1)
    outer.optim = inner
    merge_equal_groups(outer)
    assert len(outer.param_groups) == 3


@pytest.mark.parametrize('given', ['fused', 'foreach'])
def test_a_chosen_form_is_kept(given):
    from evmamba_mm.optim.constructor import _takes_fused

    assert _takes_fused(dict(type='AdamW', lr=0.1))
    assert not _takes_fused(dict(type='AdamW', lr=0.1, **{given: False}))


def test_on_a_cpu_no_optimizer_is_fused():
    wrapper = wrapper_of(model(), 'GroupedOptimWrapperConstructor', NO_DECAY)
    assert not wrapper.optimizer.defaults['fused']


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('given', [{}, dict(foreach=True), dict(fused=True)])
def test_on_a_gpu_the_fused_form_is_taken_unless_chosen(given):
    ours = model().cuda()
    wrapper = wrapper_of(
        ours, 'GroupedOptimWrapperConstructor', NO_DECAY, **given
    )
    assert bool(wrapper.optimizer.defaults['fused']) != ('foreach' in given)


def test_constructor_passes_its_arguments_on():
    cfg = dict(optimizer=dict(type='SGD', lr=0.1))
    GroupedOptimWrapperConstructor(cfg)
    assert cfg == dict(optimizer=dict(type='SGD', lr=0.1))
    with pytest.raises(ValueError, match='paramwise_cfg must be a dict'):
        GroupedOptimWrapperConstructor(
            cfg | dict(base_constructor='DefaultOptimWrapperConstructor'), 3
        )(model())
    assert DefaultOptimWrapperConstructor is not GroupedOptimWrapperConstructor
