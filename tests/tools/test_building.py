"""What a config cannot have is told in a line, with what was built."""

import re
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, VISUALIZERS
from mmengine.runner import Runner
from torch import nn

from evmamba_mm.cli import building, checks, launch, missing
from evmamba_mm.cli.origins import RUNNERS


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


class Library:
    """Raises in its own code, as a library does."""

    def __init__(self):
        Config(dict())['bbox']


def test_key_that_is_not_there():
    assert "there is no 'bbox' (" in said(MODELS, dict(type=Library))


def test_call_of_a_users_file_is_named():
    # Library stands here for a user's class.
    assert re.search(
        rf'\({re.escape(__file__)}, line \d+; EVMAMBA_TRACEBACK=1 shows the ',
        said(MODELS, dict(type=Library)),
    )


def test_unknown_type():
    assert 'Nope of the config cannot be built: Nope is not in the' in said(
        MODELS, dict(type='Nope')
    )


def test_no_type():
    line = said(MODELS, dict(type=None))
    assert line.startswith('error: a part with type=None of the config cannot')


@pytest.mark.parametrize('text', ['', '{"metainfo": '])
def test_broken_annotations(text, tmp_path):
    (tmp_path / 'broken.json').write_text(text)
    config = dict(type=BaseDataset, ann_file='broken.json')
    line = said(DATASETS, config | dict(data_root=str(tmp_path)))
    assert 'BaseDataset (data_root=' in line
    assert "ann_file='broken.json') of the config cannot" in line
    assert '\n' not in line


@pytest.mark.parametrize(
    'content, words',
    [
        (b'\xff', "codec can't decode byte 0xff"),
        (None, 'Is a directory'),
    ],
    ids=['image', 'folder'],
)
def test_annotations_of_another_kind(content, words, tmp_path):
    path = tmp_path / 'other.json'
    path.mkdir() if content is None else path.write_bytes(content)
    config = dict(type=BaseDataset, ann_file=str(path))
    assert words in said(DATASETS, config)


@pytest.mark.parametrize(
    'key, argument',
    [('train_dataloader', 'batchsize'), ('train_cfg', 'max_epoch')],
)
def test_argument_that_a_part_of_the_runner_has_not(key, argument, tmp_path):
    config = dict(
        model=ToyModel(),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=[1, 2],
            batch_size=1,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
    )
    config[key][argument] = 1
    with pytest.raises(SystemExit, match=f'refuses the con.*{argument!r}'):
        with building.mistakes_in_lines():
            Runner(**config).train()


class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return {}


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


def test_arguments_that_the_runner_refuses(tmp_path):
    with pytest.raises(SystemExit, match='error: the Runner refuses the conf'):
        with building.mistakes_in_lines(builds_all=True):
            Runner(model=dict(), work_dir=str(tmp_path), randomness=dict(a=1))


@pytest.mark.parametrize(
    'backend, package, module',
    [
        ('WandbVisBackend', 'wandb', 'wandb'),
        ('MLflowVisBackend', 'mlflow', 'mlflow'),
        ('ClearMLVisBackend', 'clearml', 'clearml'),
        ('NeptuneVisBackend', '-U neptune', 'neptune'),
        ('DVCLiveVisBackend', 'dvclive', 'pygit2'),
        ('AimVisBackend', 'aim', 'aim'),
        ('TensorboardVisBackend', 'future tensorboard', 'tensorboard'),
    ],
)
def test_package_that_a_visualizer_lacks(
    backend, package, module, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, 'torch.utils.tensorboard', False)
    backends = [dict(type=backend, save_dir=str(tmp_path))]
    config = dict(type='Visualizer', vis_backends=backends, name=backend)
    with pytest.raises(SystemExit) as stopped:
        with building.mistakes_in_lines(builds_all=True):
            VISUALIZERS.build(config).add_config(Config())
    assert stopped.value.code.startswith(
        f'error: {backend} of the config cannot be built: Please run "pip '
        f'install {package}" to install'
    )
    assert module in stopped.value.code.partition(' to install')[2]


def test_score_that_there_is_not():
    def _save_best_checkpoint(metrics, key):
        return metrics[key]

    for scores in (dict(mIoU=1), dict(a=1, b=2)):
        with pytest.raises(SystemExit) as stopped:
            with building.unknown_score_in_a_line():
                _save_best_checkpoint(scores, 'miou')
        assert stopped.value.code == (
            "error: default_hooks.checkpoint.save_best is 'miou'; the "
            f'validation gives {", ".join(scores)}'
        )
    with pytest.raises(KeyError):
        with building.unknown_score_in_a_line():
            dict()['of my own']


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


@pytest.mark.parametrize(
    ('error', 'label'),
    [
        (IndexError('Target 12 is out of bounds.'), '12'),
        (
            AssertionError('Class Index must be less than number of classes'),
            '(not named)',
        ),
    ],
)
def test_label_that_a_loss_refuses(error, label):
    with pytest.raises(SystemExit) as stopped:
        with launch.run_in_lines(Config(dict(work_dir='none'))):
            raise error
    assert stopped.value.code.startswith(
        f'error: a batch has the label {label}, which is no class: '
    )


def test_worker_that_was_ended_is_a_line():
    said = 'DataLoader worker (pid 7) is killed by signal: Terminated. '
    with pytest.raises(SystemExit, match='error: DataLoader worker .pid 7'):
        with launch.run_in_lines(Config(dict(work_dir='none'))):
            raise RuntimeError(said)


def test_missing_file_is_a_line(tmp_path):
    inner = dict(data_root=str(tmp_path), data_prefix='images')
    cfg = Config(
        dict(train_dataloader=dict(dataset=inner), train_cfg={}, work_dir='w')
    )
    with pytest.raises(SystemExit) as stopped:
        with launch.run_in_lines(cfg):
            with missing.missing_images_explained(cfg, ['train']):
                # As if the Runner itself opened it.
                code = compile('open(path)', RUNNERS[0], 'exec')
                exec(code, dict(path=tmp_path / 'images' / 'a.png'))
    assert 'dataset.data_prefix=FOLDER' in stopped.value.code


def test_other_errors_of_a_training_are_left_alone():
    with pytest.raises(AssertionError, match='of my own'):
        with launch.run_in_lines(Config(dict(work_dir='none'))):
            raise AssertionError('of my own')
