"""An interrupted and resumed training equals an uninterrupted one."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, FUNCTIONS
from mmengine.runner import Runner

from evmamba_mm import SignalHook
from evmamba_mm.weight_files import read_weights

from . import train_classifier

LAST = 2 * 3  # iterations of two epochs
SAVED = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')


@DATASETS.register_module(force=True)
class NoisyImages(train_classifier.RandomImages):
    """Images with noise from each of the three generators."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        noise = random.random() + np.random.rand() + torch.rand(())
        sample['inputs'] = sample['inputs'] * noise
        return sample


class Stop(Hook):
    """Sends a signal to its own process, as a cluster would."""

    def __init__(self, number, iteration):
        self.number, self.iteration = number, iteration

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), self.number)


def config(folder, exact=True, workers=2, persistent=False):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    cfg = train_classifier.config(
        folder, 'fp32', [dict(type='EMAHook', momentum=0.1)]
    )
    cfg.model.backbone.drop_path_rate = 0.5
    loader = dict(
        cfg.train_dataloader,
        dataset=dict(type='NoisyImages', size=64),
        sampler=dict(type='DefaultSampler', shuffle=True),
        num_workers=workers,
    )
    if persistent:
        loader['persistent_workers'] = True
    cfg.train_dataloader = loader
    cfg.param_scheduler = dict(
        type='LinearLR', start_factor=0.1, by_epoch=False, end=LAST
    )
    cfg.default_hooks = dict(
        checkpoint=dict(
            type='AtomicCheckpointHook', interval=1, save_best='auto'
        ),
        signals=dict(type='SignalHook'),
    )
    if exact:
        cfg.default_hooks['exact'] = dict(type='ExactResumeHook')
    cfg.train_cfg.max_epochs = 2
    return Config(cfg.to_dict())


def train(cfg, *hooks):
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


def resumed(folder, file, **settings):
    cfg = config(folder, **settings)
    cfg.update(resume=True, load_from=str(folder / file))
    train(cfg)
    return read_weights(folder / 'epoch_2.pth')


def differences(first, second, place=''):
    if isinstance(first, dict):
        assert set(first) == set(second), place
        pairs = [(key, first[key], second[key]) for key in first]
    elif isinstance(first, list):
        pairs = zip(range(len(first)), first, second, strict=True)
    else:
        tensors = isinstance(first, torch.Tensor)
        same = torch.equal(first, second) if tensors else first == second
        return [] if same else [place]
    return [
        found
        for key, one, other in pairs
        for found in differences(one, other, f'{place}.{key}')
    ]


def assert_same(first, second):
    for key in SAVED:
        assert differences(first[key], second[key], key) == []


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    train(config(folder))
    return folder, read_weights(folder / 'epoch_2.pth')


def test_resumed_after_an_epoch(whole):
    folder, expected = whole
    assert_same(expected, resumed(folder, 'epoch_1.pth'))


@pytest.mark.parametrize(
    'name, iteration', [('SIGTERM', 1), ('SIGTERM', 3), ('SIGUSR1', 5)]
)
def test_stopped_by_a_signal(whole, name, iteration, tmp_path, capsys):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        train(config(tmp_path), Stop(number, iteration))
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is before
    file = tmp_path / 'interrupted.pth'
    assert (tmp_path / 'last_checkpoint').read_text() == str(file)
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith('stopped')
    ]
    assert f'by {name} after iteration {iteration}: {file} is' in line
    assert read_weights(file)['meta']['iter'] == iteration
    assert_same(whole[1], resumed(tmp_path, 'interrupted.pth'))


def test_without_workers(tmp_path):
    train(config(tmp_path, workers=0))
    expected = read_weights(tmp_path / 'epoch_2.pth')
    with pytest.raises(SystemExit):
        train(config(tmp_path, workers=0), Stop(signal.SIGTERM, 5))
    assert_same(expected, resumed(tmp_path, 'interrupted.pth', workers=0))


def test_without_the_hook_it_differs(tmp_path):
    train(config(tmp_path, exact=False))
    expected = read_weights(tmp_path / 'epoch_2.pth')
    again = resumed(tmp_path, 'epoch_1.pth', exact=False)
    assert differences(expected['state_dict'], again['state_dict'])


def test_workers_that_outlive_an_epoch_are_told(tmp_path, caplog):
    cfg = config(tmp_path, persistent=True)
    runner = Runner.from_cfg(cfg)
    told = []
    runner.logger.addFilter(lambda record: told.append(record.msg) or True)
    runner.train()
    assert sum('persistent_workers' in str(text) for text in told) == 1


@FUNCTIONS.register_module(force=True)
def note_start(worker_id, folder):
    Path(folder, str(worker_id)).touch()


def test_start_of_a_worker_is_kept(whole, tmp_path):
    cfg = config(tmp_path)
    (tmp_path / 'started').mkdir()
    start = dict(type='note_start', folder=str(tmp_path / 'started'))
    cfg.train_dataloader.worker_init_fn = start
    train(cfg)
    started = sorted(path.name for path in (tmp_path / 'started').iterdir())
    assert started == ['0', '1']
    assert_same(whole[1], read_weights(tmp_path / 'epoch_2.pth'))


def test_starting_weights_leave_out_no_batch(whole, tmp_path):
    with pytest.raises(SystemExit):
        train(config(tmp_path), Stop(signal.SIGTERM, 5))
    cfg = config(tmp_path / 'other')
    cfg.load_from = str(tmp_path / 'interrupted.pth')
    assert train(cfg).iter == LAST


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(signals=['SIGNAL']), "'SIGNAL' is none of"),
        (dict(interval=0), 'interval must be an integer of at least 1'),
    ],
    ids=['signals', 'interval'],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SignalHook(**settings)
