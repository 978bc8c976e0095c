"""The log says how long a training waits for its data."""

import time

import pytest
import torch
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner

from evmamba_mm import DataWaitHook

from . import train_classifier


@FUNCTIONS.register_module(force=True)
def slow_collate(items, seconds):
    time.sleep(seconds)
    images = torch.stack([item['inputs'] for item in items])
    return dict(
        inputs=images, data_samples=[item['data_samples'] for item in items]
    )


def waited(folder, seconds, warn=0.5):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    cfg = train_classifier.config(folder, 'fp32', [])
    cfg.default_hooks = dict(
        logger=dict(type='LoggerHook', interval=3),
        data_wait=dict(type='DataWaitHook', warn=warn),
    )
    cfg.train_dataloader.collate_fn = dict(
        type='slow_collate', seconds=seconds
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.message_hub.get_scalar('train/data_wait')


def test_the_part_of_the_time_is_logged(tmp_path, caplog):
    caplog.set_level('INFO', 'evmamba_mm')
    fast = waited(tmp_path / 'fast', seconds=0)
    assert 0 <= fast.current() < 0.5
    assert 'waited for data' not in caplog.text
    slow = waited(tmp_path / 'slow', seconds=0.5)
    # Three epochs, each logged once.
    assert len(slow.data[0]) == 3
    assert 0.5 < slow.current() <= 1
    assert 'waited for data in' in caplog.text
    assert 'num_workers is 0' in caplog.text


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='warn must be between 0 and 1'):
        DataWaitHook(warn=2)
