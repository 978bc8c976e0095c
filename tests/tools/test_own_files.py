"""Classes and files of a user's own are told from those of libraries."""

import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from evmamba_mm import own_files
from evmamba_mm.cli import checks, launch, missing, origins
from evmamba_mm.cli.building import mistakes_in_lines
from evmamba_mm.cli.failing import failed_part, said_of

from .test_train_test import TOOLS


@pytest.mark.parametrize(
    ('file', 'own'),
    [
        ('/usr/src/app/net.py', True),
        (sys.prefix + '_of_mine/net.py', True),
        (__file__, True),
        (torch.__file__, False),
        (os.__file__, False),
        (checks.__file__, False),
        (str(TOOLS / 'infer.py'), False),
        (str(TOOLS / 'my_hooks.py'), True),
        ('<frozen importlib._bootstrap>', False),
    ],
)
def test_files(file, own):
    assert own_files.is_own(file) == own


def wrong(item):
    return torch.zeros(2).view(item)


def unequal(items):
    return torch.stack([torch.zeros(i + 1) for i in range(2)])


def run(loop, loader):
    """Has mmengine's loop take a batch, in a frame like the Runner's."""
    code = 'def run(self, loader):\n    next(iter(loader))\n'
    names = {}
    exec(compile(code, origins.RUNNERS[0], 'exec'), names)
    names['run'](loop, loader)


class Items(list):
    def __getitem__(self, index):
        return wrong(5)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_users_data_set_in_a_worker(workers):
    with pytest.raises(RuntimeError) as error:
        run(None, DataLoader(Items([1]), num_workers=workers))
    assert origins.own_call(error.value) == (
        f'{__file__}, line {wrong.__code__.co_firstlineno + 1}'
    )
    with pytest.raises(RuntimeError), mistakes_in_lines(Config({})):
        raise error.value


@pytest.mark.parametrize('workers', [0, 1])
def test_batch_that_cannot_be_made_is_the_loaders(workers):
    from mmengine.dataset import default_collate
    from mmengine.runner import EpochBasedTrainLoop

    loop = object.__new__(EpochBasedTrainLoop)
    loop._iter = 0
    images = [torch.zeros(1), torch.zeros(2)]
    loader = DataLoader(
        images, batch_size=2, num_workers=workers, collate_fn=default_collate
    )
    with pytest.raises(RuntimeError) as error:
        run(loop, loader)
    parts = dict(train_dataloader=dict(batch_size=2), val_dataloader={})
    parts['train_cfg'] = dict(type='EpochBasedTrainLoop')
    said = said_of(error.value)
    line = failed_part(error.value, Config(parts), said)
    assert line.startswith('train_dataloader (DataLoader) fails: '), line
    assert 'stack expects each tensor to be equal size' in line
    assert 'It has batch_size=2' in line
    assert 'Traceback' not in line


class OwnHook(Hook):
    def before_train(self, runner):
        len(5)


def test_call_of_a_users_hook_is_shown():
    runner = object.__new__(Runner)
    runner._hooks = [OwnHook()]
    with pytest.raises(TypeError) as error, mistakes_in_lines(Config({})):
        runner.call_hook('before_train')
    assert error.traceback[-1].name == 'before_train'


class CIFAR10:
    pass


class OwnData:
    def load_data_list(self):
        return []


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type=CIFAR10, data_root='data/cifar10'),
        dict(type=OwnData, data_root='from the net', ann_file='none'),
        dict(type='A', data_root=Path(__file__).parent, ann_file=Path()),
        dict(type='A', data_root='~'),
    ],
    ids=['lazy', 'own', 'path', 'home'],
)
def test_data_that_are_not_refused(dataset):
    cfg = Config(dict(test_dataloader=dict(dataset=dataset), test_cfg={}))
    checks.check_data(cfg, ['test'])


@pytest.mark.parametrize(
    'evaluator',
    [
        dict(type='A', ann_file='far', backend_args=dict(backend='petrel')),
        dict(type=OwnData, ann_file='none'),
        dict(type='A', ann_file=Path(__file__)),
        dict(type='A', ann_file=['a', 'b']),
    ],
    ids=['backend', 'own', 'path', 'list'],
)
def test_annotations_of_a_score_that_are_not_refused(evaluator):
    cfg = Config(dict(test_evaluator=[evaluator], test_cfg={}))
    checks.check_data(cfg, ['test'])


def test_file_that_a_users_code_looks_for(tmp_path):
    inner = dict(data_root=str(tmp_path))
    cfg = Config(dict(train_dataloader=dict(dataset=inner), train_cfg={}))
    with pytest.raises(FileNotFoundError) as error:
        with missing.missing_images_explained(cfg, ['train']):
            open(tmp_path / 'masks.npy')
    assert type(error.value) is FileNotFoundError


@pytest.mark.parametrize('line', ["int('my word')", "open('mine.txt')"])
def test_module_that_a_config_imports(line, tmp_path, monkeypatch):
    name = f'module_{len(line)}'
    (tmp_path / f'{name}.py').write_text(line)
    (tmp_path / 'a.py').write_text(
        f"custom_imports = dict(imports=['{name}'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        with checks.errors_in_a_line():
            launch.load_config(tmp_path / 'a.py')
    assert error.traceback[-1].path == tmp_path / f'{name}.py'


def test_override_of_what_the_file_computes_with(tmp_path):
    (tmp_path / 'a.py').write_text('half = 3\nmodel = dict(depth=2 * half)\n')
    with pytest.raises(ValueError, match="'half' is a variable of the config"):
        launch.load_config(tmp_path / 'a.py', ['half=4'])


@pytest.mark.parametrize(
    'option',
    [
        "model.init_cfg=dict(type='Pretrained',checkpoint='/nope.pth')",
        'model.depth=[1,2',
    ],
)
def test_options_that_cannot_be_read(option, tmp_path):
    (tmp_path / 'a.py').write_text('model = dict(depth=2)\n')
    with pytest.raises(ValueError, match='give a dict key by key') as error:
        launch.load_config(tmp_path / 'a.py', ['model.depth=3', option])
    assert f"--cfg-options '{option[:5]}" in str(error.value).replace('"', "'")


@pytest.mark.parametrize('part', ['EfficientVMamba', 5, None])
def test_parts_that_are_no_dicts_are_left_to_the_libraries(part):
    named = dict(type='EfficientVMamba')
    for model in (dict(backbone=part), dict(backbone=named, neck=part)):
        checks.check_outputs(Config(dict(model=model)))


@pytest.mark.parametrize('key', ['frozen_stages', 'start_level'])
def test_levels_of_no_kind(key):
    part = {key: None}
    backbone = dict(part, type='EfficientVMamba')
    checks.check_outputs(
        Config(dict(model=dict(backbone=backbone, neck=dict(part))))
    )
