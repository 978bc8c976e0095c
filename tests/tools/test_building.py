"""What a config cannot have is told in a line, with what was built."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, MODELS
from torch import nn

from evmamba_mm.cli import building, checks


def said(registry, config):
    with pytest.raises(SystemExit) as stopped:
        with building.mistakes_in_lines():
            registry.build(config)
    return stopped.value.code


def test_illegal_argument():
    line = said(MODELS, dict(type='EfficientVMamba', arch='huge'))
    assert line.startswith(
        'error: EfficientVMamba of the config cannot be built: arch '
    )


def test_unknown_type():
    assert 'Nope of the config cannot be built: Nope is not in the' in said(
        MODELS, dict(type='Nope')
    )


@pytest.mark.parametrize('text', ['', '{"metainfo": '])
def test_broken_annotations(text, tmp_path):
    (tmp_path / 'broken.json').write_text(text)
    config = dict(type=BaseDataset, ann_file='broken.json')
    line = said(DATASETS, config | dict(data_root=str(tmp_path)))
    assert 'BaseDataset (data_root=' in line
    assert "ann_file='broken.json') of the config cannot" in line
    assert '\n' not in line


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        raise ValueError('of my own')


def test_error_of_a_users_file_is_left_alone():
    with pytest.raises(ValueError, match='of my own'):
        with building.mistakes_in_lines():
            MODELS.build(dict(type=Wrong))


def test_error_outside_of_building_is_left_alone():
    with pytest.raises(ValueError):
        with building.mistakes_in_lines():
            int('x')


@pytest.mark.parametrize('value', [0, -1, 'abc', 1.5, True])
@pytest.mark.parametrize('key', ['max_epochs', 'max_iters'])
def test_training_of_no_length(key, value):
    with pytest.raises(ValueError, match=f'train_cfg.{key} must be'):
        checks.check_length(Config(dict(train_cfg={key: value})))


def test_training_of_a_length():
    checks.check_length(Config(dict(train_cfg=dict(max_epochs=3))))
    checks.check_length(Config(dict(model=dict())))


@pytest.mark.parametrize('name', ['Adamm', 'NoSuch'])
def test_unknown_optimiser(name):
    config = dict(optim_wrapper=dict(optimizer=dict(type=name)))
    with pytest.raises(ValueError, match=f'optimizer.type: .* {name!r}'):
        checks.check_optimizer(Config(config))
    for legal in (dict(type='AdamW'), dict(type=torch.optim.SGD), None):
        checks.check_optimizer(
            Config(dict(optim_wrapper=dict(optimizer=legal)))
        )
    checks.check_optimizer(Config(dict()))
