import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from evmamba_mm import DeferredRuntimeInfoHook

from . import train_classifier

EMA = dict(type='EMAHook', momentum=0.1, update_buffers=True)
FOREACH_EMA = EMA | dict(ema_type='ForeachExponentialMovingAverage')
DECAY = dict(bias_decay_mult=0.0, flat_decay_mult=0.0)


class Histories(Hook):
    """Counts what the hub has when a hook of low priority may read it."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.counts = []

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        scalars = runner.message_hub.log_scalars
        has = 'train/loss' in scalars
        self.counts.append(len(scalars['train/loss'].data[0]) if has else 0)


def trained(folder, deferred, interval=2, more=()):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    hooks = [FOREACH_EMA if deferred else EMA]
    cfg = train_classifier.config(folder, 'fp32', hooks)
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.1),
        clip_grad=dict(max_norm=0.5),
        paramwise_cfg=DECAY,
    )
    cfg.default_hooks = dict(
        logger=dict(type='LoggerHook', interval=interval),
        checkpoint=dict(type='CheckpointHook', interval=1),
    )
    if deferred:
        cfg.optim_wrapper.constructor = 'GroupedOptimWrapperConstructor'
        cfg.default_hooks.runtime_info = dict(type='DeferredRuntimeInfoHook')
    runner = Runner.from_cfg(cfg)
    counted = Histories()
    for hook in (counted, *more):
        runner.register_hook(hook)
    runner.train()
    return runner, counted.counts


def history(scalars, name):
    return scalars[f'train/{name}'].data[0]


def logged(folder):
    (path,) = folder.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    left = ('time', 'data_time', 'memory')
    return [{k: v for k, v in x.items() if k not in left} for x in lines]


def test_training_log_and_checkpoint_equal_the_stock_ones(tmp_path):
    stock, _ = trained(tmp_path / 'stock', deferred=False)
    ours, counts = trained(tmp_path / 'ours', deferred=True)
    for name in ('loss', 'grad_norm', 'lr'):
        values = history(ours.message_hub.log_scalars, name)
        assert len(values) == 9
        torch.testing.assert_close(
            torch.tensor(values),
            torch.tensor(history(stock.message_hub.log_scalars, name)),
            rtol=1e-4,
            atol=1e-6,
        )
    expected, actual = logged(tmp_path / 'stock'), logged(tmp_path / 'ours')
    assert [x.keys() for x in actual] == [x.keys() for x in expected]
    for a, b in zip(actual, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    # Three iterations an epoch, logged at the second; the end hands over too.
    assert counts == [0, 2, 3, 3, 5, 6, 6, 8, 9]
    files = [
        torch.load(tmp_path / name / 'epoch_3.pth', weights_only=True)
        for name in ('stock', 'ours')
    ]
    for key in ('state_dict', 'ema_state_dict'):
        torch.testing.assert_close(
            files[1][key], files[0][key], rtol=1e-4, atol=1e-6
        )
    hubs = [file['message_hub']['log_scalars'] for file in files]
    assert len(history(hubs[1], 'loss')) == len(history(hubs[0], 'loss')) == 9
    assert len(files[1]['optimizer']['param_groups']) == 2


def test_infinite_loss_is_told_once(tmp_path):
    class Break(Hook):
        priority = 'VERY_HIGH'

        def after_train_iter(self, runner, batch_idx, **more):
            if runner.iter == 2:
                with torch.no_grad():
                    next(runner.model.parameters()).fill_(torch.inf)

    runner = trained(tmp_path, deferred=True, more=[Break()])[0]
    text = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    assert text.count('the loss is nan; the training goes on') == 1


def test_clipping_is_given_back(tmp_path):
    runner, _ = trained(tmp_path, deferred=True)
    assert runner.optim_wrapper.clip_func is torch.nn.utils.clip_grad_norm_


def test_values_are_kept_for_so_many_iterations_at_most(tmp_path):
    hook = DeferredRuntimeInfoHook(limit=1)
    assert hook.limit == 1
    with pytest.raises(ValueError, match='limit must be an integer'):
        DeferredRuntimeInfoHook(limit=0)
