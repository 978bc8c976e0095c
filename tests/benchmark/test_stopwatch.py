"""The parts of an iteration, on a clock that each part moves."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.runner import Runner
from torch import nn

from evmamba_mm.benchmark import stopwatch
from evmamba_mm.benchmark.batches import Replayed

CPU = torch.device('cpu')
# Seconds that each part takes, and of the optimizer a step.
DATA, PREPROCESSOR, FORWARD, BACKWARD, STEP, HOOK = 1, 2, 4, 8, 32, 64


class Clock:
    now = 0.0

    def add(self, seconds, result=None):
        Clock.now += seconds
        return result


class Slow(Replayed):
    def __iter__(self):
        for batch in super().__iter__():
            Clock.now += DATA
            yield batch


class Preprocessor(BaseDataPreprocessor):
    def forward(self, data, training=False):
        Clock.now += PREPROCESSOR
        return super().forward(data, training)


class Model(BaseModel):
    def __init__(self):
        super().__init__(data_preprocessor=Preprocessor())
        self.layer = nn.Linear(3, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        Clock.now += FORWARD
        loss = self.layer(inputs).square().mean()

        def backward(gradient):
            Clock.now += BACKWARD

        loss.register_hook(backward)
        return dict(loss=loss)


class Descent(torch.optim.SGD):
    def step(self, closure=None):
        Clock.now += STEP
        return super().step(closure)


class Average(Hook):
    """Works before and after an iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        Clock.now += HOOK / 4

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        Clock.now += HOOK * 3 / 4


def trained(folder, watch, length, epochs, name):
    """The weights after a training that a stopwatch ends, or its epochs."""
    torch.manual_seed(0)
    model = Model()
    batches = [dict(inputs=torch.randn(2, 3)) for _ in range(3)]
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=Slow(batches, length),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type=Descent, lr=0.1),
            accumulative_counts=2,
            clip_grad=dict(max_norm=0.5),
        ),
        default_hooks=dict(checkpoint=None),
        custom_hooks=[dict(type=Average, priority='LOWEST')],
        experiment_name=name,
        log_level='ERROR',
    )
    if watch is None:
        runner.train()
    else:
        watch.attach(runner)
        with pytest.raises(stopwatch.Finished):
            runner.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def clock(monkeypatch):
    time = SimpleNamespace(perf_counter=lambda: Clock.now)
    monkeypatch.setattr(stopwatch, 'time', time)


@pytest.mark.parametrize('length', [12, 4], ids=['an epoch', 'epochs'])
def test_each_part_has_its_own_time(length, clock, tmp_path):
    watch = stopwatch.Stopwatch(CPU, first=3, last=9, split=True)
    trained(tmp_path, watch, length, 9, f'parts{length}')
    expected = {
        stopwatch.DATA: DATA,
        stopwatch.PREPROCESSOR: PREPROCESSOR,
        stopwatch.FORWARD: FORWARD,
        stopwatch.BACKWARD: BACKWARD,
        # Of every other iteration.
        stopwatch.OPTIMIZER: STEP / 2,
        stopwatch.HOOKS: HOOK,
        stopwatch.REST: 0,
    }
    found = watch.milliseconds()
    assert found == pytest.approx({k: 1e3 * v for k, v in expected.items()})
    whole = stopwatch.Stopwatch(CPU, first=3, last=9, split=False)
    trained(tmp_path, whole, length, 9, f'whole{length}')
    assert whole.milliseconds() == pytest.approx(
        {stopwatch.WHOLE: 1e3 * sum(expected.values())}
    )


def test_a_timed_training_is_the_same(tmp_path):
    weights = trained(tmp_path, None, 9, 1, 'untimed')
    for split in (False, True):
        watch = stopwatch.Stopwatch(CPU, 2, 8, split)
        same = trained(tmp_path, watch, 9, 1, f'timed{split}')
        assert torch.equal(same, weights)


def test_a_part_inside_of_another_is_a_part_of_that(clock):
    watch = stopwatch.Stopwatch(CPU, 0, 1, split=True)

    def preprocess():
        Clock.now += PREPROCESSOR

    inner = watch._timed(preprocess, stopwatch.PREPROCESSOR)
    outer = watch._timed(inner, stopwatch.FORWARD)
    watch._timed(outer, stopwatch.FORWARD)()
    assert watch.sums == {stopwatch.FORWARD: PREPROCESSOR}
