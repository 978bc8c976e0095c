"""Values of a wrong kind are refused before anything runs."""

import pytest
from mmengine.config import Config
from torch import nn

from evmamba_mm.cli import checks, values


def nested(key, value):
    for part in reversed(key.split('.')):
        value = {part: value}
    return Config(value)


@pytest.mark.parametrize('value', ['x', True, -2, 1.5])
@pytest.mark.parametrize('key', values.INTEGERS)
def test_integers(key, value):
    with pytest.raises(ValueError, match=f'^{key} must be an integer') as e:
        values.check_values(nested(key, value))
    assert str(e.value).endswith(f'got {value!r}')


@pytest.mark.parametrize('value', ['x', True, -0.1])
@pytest.mark.parametrize('key', values.NUMBERS)
def test_numbers(key, value):
    with pytest.raises(ValueError, match=f'^{key} must be a number'):
        values.check_values(nested(key, value))


@pytest.mark.parametrize(
    'key, value',
    [
        ('train_cfg.max_epochs', 3),
        ('train_cfg.max_epochs', None),
        ('train_cfg.max_iters', 4e4),
        ('default_hooks.checkpoint.interval', 2.0),
        ('train_cfg.val_interval', 1),
        ('default_hooks.checkpoint', None),
        ('default_hooks.checkpoint.interval', -1),
        ('default_hooks.checkpoint._scope_', 'mmdet'),
        ('default_hooks.checkpoint.backend_args', None),
        ('default_hooks.checkpoint.meta', {}),
        ('randomness.seed', 2**32 - 1),
        ('optim_wrapper.optimizer.lr', 1e-3),
        ('log_level', 'WARN'),
        ('log_level', 10),
        ('model.type', 'x'),
    ],
)
def test_legal_values(key, value):
    values.check_values(nested(key, value))


@pytest.mark.parametrize('value', ['no', 2])
@pytest.mark.parametrize('key', values.SWITCHES)
def test_switches(key, value):
    with pytest.raises(ValueError, match=f'^{key} must be True or False'):
        values.check_values(nested(key, value))
    for legal in (True, False, 0, 1, None):
        values.check_values(nested(key, legal))


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('data_preprocessor.std', [1.0, 0]),
        ('model.data_preprocessor.std', (-1, 2)),
        ('sync_bn', 'x'),
    ],
)
def test_values_of_other_kinds(key, value):
    with pytest.raises(ValueError, match=f'^{key} must be .*, got '):
        values.check_values(nested(key, value))


@pytest.mark.parametrize('level', ['LOUD', 'info'])
def test_level_of_the_log(level):
    with pytest.raises(ValueError, match=f"one of .* got '{level}'"):
        values.check_values(Config(dict(log_level=level)))


@pytest.mark.parametrize(
    ('length', 'ends', 'warns'),
    [
        (dict(max_epochs=24), [(False, 500), (True, 12)], True),
        (dict(max_epochs=3), [(True, 5), (True, 12)], True),
        (dict(max_epochs=12), [(False, 500), (True, 12)], False),
        (dict(max_epochs=24), [(True, 5), (True, None)], False),
        (dict(max_iters=200), [(False, 100)], True),
        (dict(max_iters=200), [(True, 100)], False),
    ],
)
def test_schedules_that_end_elsewhere(length, ends, warns, package_log):
    schedule = [
        dict(type='MultiStepLR', by_epoch=by_epoch)
        | (dict(end=end) if end else {})
        for by_epoch, end in ends
    ]
    cfg = Config(dict(train_cfg=length, param_scheduler=schedule))
    values.check_schedule(cfg)
    assert ('and param_scheduler ends at' in package_log.text) == warns


@pytest.mark.parametrize('validates', [True, False])
def test_best_checkpoints_need_a_validation(validates, package_log):
    cfg = nested('default_hooks.checkpoint.save_best', 'accuracy/top1')
    if validates:
        cfg.val_cfg = dict()
    values.check_best_checkpoints(cfg)
    assert ('no best checkpoint' in package_log.text) == (not validates)


def test_argument_that_a_checkpoint_hook_has_not():
    with pytest.raises(ValueError, match="did you mean 'interval'"):
        values.check_values(nested('default_hooks.checkpoint.intervall', 1))
    hook = dict(type='Mine', intervall=1)
    values.check_values(nested('default_hooks.checkpoint', hook))


@pytest.mark.parametrize('key', ['model', 'train_cfg', 'randomness'])
def test_sections_are_dicts(key):
    with pytest.raises(ValueError, match=f'{key} must be a dict, got 3'):
        values.check_sections(Config({key: 3}), ())
    with pytest.raises(ValueError, match=f'the config has no {key}'):
        values.check_sections(Config({key: None}), (key,))


def test_parts_of_sections_are_dicts():
    key = 'optim_wrapper.optimizer'
    with pytest.raises(ValueError, match=f"{key} must be a dict, got 'Adam'"):
        values.check_sections(nested(key, 'Adam'), ())


@pytest.mark.parametrize('key', ['load_from', 'work_dir'])
def test_paths(key):
    with pytest.raises(ValueError, match=f'{key} must be a path, got 3'):
        values.check_sections(Config({key: 3}), ())


def test_parts_of_a_split_are_there_together():
    some = dict(val_dataloader={}, val_cfg={}, test_cfg=None)
    with pytest.raises(ValueError, match='the config has no val_evaluator'):
        values.check_sections(Config(some), ())


@pytest.mark.parametrize('value', ['x', [3], dict(type='A')])
def test_hooks_are_a_list_of_dicts(value):
    with pytest.raises(ValueError, match='custom_hooks must be a list of'):
        values.check_sections(Config(dict(custom_hooks=value)), ())


def test_legal_sections():
    one = dict(type='A')
    values.check_sections(
        Config(
            dict(
                model=one,
                custom_hooks=[one],
                param_scheduler=one,
                val_evaluator=[one],
                val_dataloader=one,
                val_cfg={},
                test_cfg=None,
                load_from=None,
            )
        ),
        ('model',),
    )


@pytest.mark.parametrize('name', ['class', 'clases', 'CLASSES', 'pallete'])
def test_misspelt_key_of_metainfo(name):
    key = 'train_dataloader.dataset.metainfo'
    cfg = nested(f'{key}.{name}', ['a'])
    cfg.train_cfg = {}
    meant = 'palette' if name[0] == 'p' else 'classes'
    with pytest.raises(ValueError, match=f"{key} has '{name}'.*'{meant}'"):
        checks.check_data(cfg, ['train'])


@pytest.mark.parametrize(
    'given',
    [None, 'file.txt', dict(base_classes=1), dict(classes=1, subclasses=2)],
)
def test_legal_metainfo(given):
    checks.check_slips('metainfo', given, checks.METAINFO)


def test_settings_of_groups_of_parameters(package_log):
    def check(**given):
        cfg = nested('optim_wrapper.paramwise_cfg', given)
        checks.check_paramwise(cfg, nn.Linear(1, 1))

    with pytest.raises(ValueError, match="mean 'norm_decay_mult'"):
        check(norm_decay_mul=0)
    check(norm_decay_mult=0, num_layers=3, custom_keys=dict(bias={}))
    assert not package_log.records
    own = nested('optim_wrapper.paramwise_cfg.bias_decay', 1)
    for key in ('constructor', 'base_constructor'):
        own.optim_wrapper[key] = 'Own'
        checks.check_paramwise(own, nn.Linear(1, 1))
        own.optim_wrapper[key] = 'GroupedOptimWrapperConstructor'
    with pytest.raises(ValueError, match="has 'bias_decay'"):
        checks.check_paramwise(own, nn.Linear(1, 1))
    check(custom_keys=dict(head={}))
    assert "custom_keys has 'head', and no" in package_log.text


@pytest.mark.parametrize('name', ['lr', 'weight_decay'])
def test_infinite_rates(name):
    key = f'optim_wrapper.optimizer.{name}'
    with pytest.raises(ValueError, match=f'^{key} .* and finite, got inf'):
        values.check_values(nested(key, float('inf')))
    values.check_values(nested('optim_wrapper.clip_grad.max_norm', 1e999))


def test_compilers():
    for legal in (True, dict(backend='inductor'), dict(mode='default')):
        values.check_values(Config(dict(compile=legal)))
    for key in ('backend', 'mode'):
        with pytest.raises(ValueError, match=f'^compile.{key} must .*got .x'):
            values.check_values(Config(dict(compile={key: 'x'})))


def test_place_for_checkpoints(tmp_path):
    key = 'default_hooks.checkpoint.out_dir'
    for legal in (None, str(tmp_path / 'new'), 's3://bucket/run'):
        values.check_out_dir(nested(key, legal))
    with pytest.raises(ValueError, match=f'^{key} must be a path, got 3'):
        values.check_out_dir(nested(key, 3))
    (tmp_path / 'file').touch()
    cfg = nested(key, str(tmp_path / 'file'))
    with pytest.raises(ValueError, match=f'^{key}: .* cannot be written'):
        values.check_out_dir(cfg)
    cfg.default_hooks.checkpoint.backend_args = dict(backend='petrel')
    values.check_out_dir(cfg)


def test_wrappers_of_the_model():
    with pytest.raises(ValueError, match='FlatDistributedDataParallel.\\?$'):
        wrapper = dict(type='FlatDistributedDataParalel')
        values.check_values(Config(dict(model_wrapper_cfg=wrapper)))
    with pytest.raises(ValueError, match='^model_wrapper_cfg must be a dict'):
        values.check_sections(Config(dict(model_wrapper_cfg='x')), ())


@pytest.mark.parametrize(
    'more', [{}, dict(broadcast_buffers=False)], ids=['top', 'in it']
)
def test_options_that_the_flat_wrapper_has_not(more):
    wrapper = dict(type='FlatDistributedDataParallel')
    values.check_values(Config(dict(model_wrapper_cfg=wrapper)))
    cfg = Config(dict(find_unused_parameters=True, model_wrapper_cfg=None))
    values.check_values(cfg)
    cfg.model_wrapper_cfg = wrapper | more
    # One process alone has no wrapper.
    values.check_values(cfg)
    cfg.launcher = 'pytorch'
    key = next(iter(more), 'find_unused_parameters')
    with pytest.raises(ValueError, match=f'^{key} has no effect with model_w'):
        values.check_values(cfg)
