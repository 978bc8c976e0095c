import json
import logging
import re
import socket
from pathlib import Path

import pytest
import torch
from mmengine.registry import HOOKS
from torch import nn

from evmamba_mm import CUDAGraphHook

from ..compat.processes import run_python
from ..graph_fixtures import NEEDS_GPU, count_replays, make_up_graphs
from . import train_classifier

SCRIPT = Path(__file__).with_name('train_classifier.py')
HOOK = dict(type='CUDAGraphHook', repeats=2)
# Six full batches, of which two are watched; forward and backward each.
REPLAYS = 2 * 4


def run(folder, wrapper, hooks):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    cfg = train_classifier.config(folder, wrapper, hooks)
    return train_classifier.train(cfg)


class Made:
    """As much of a runner as the hook looks at."""

    def __init__(self, model, **cfg):
        self.model = model
        self.cfg = cfg


def test_the_hook_is_registered():
    assert HOOKS.get('CUDAGraphHook') is CUDAGraphHook
    hook = HOOKS.build(dict(type='CUDAGraphHook', module='backbone.norm'))
    assert (hook.module, hook.shapes, hook.repeats) == ('backbone.norm', 1, 3)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(module=''), 'module must be a path'),
        (dict(module=None), 'module must be a path'),
        (dict(module=[]), 'module must be a path'),
        (dict(module=['neck', 3]), 'module must be a path'),
        (dict(module=['neck', 'neck']), 'must name a part once'),
        (dict(shapes=0), 'shapes must be an integer'),
        (dict(repeats=0.5), 'repeats must be an integer'),
        (dict(strict='no'), "strict must be True or False, got 'no'"),
    ],
)
def test_an_illegal_argument_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CUDAGraphHook(**settings)


def model_of(part):
    return nn.ModuleDict(dict(backbone=part, head=nn.Linear(1, 1)))


class Recomputing(nn.Conv2d):
    with_cp = True


@pytest.mark.parametrize(
    ('hook', 'runner', 'message'),
    [
        (
            CUDAGraphHook('neck'),
            Made(model_of(nn.ReLU())),
            "module='neck' is not in ModuleDict, which has backbone, head",
        ),
        (
            CUDAGraphHook('backbone.weight'),
            Made(model_of(nn.Conv2d(1, 1, 1))),
            "module='backbone.weight' is not in",
        ),
        (
            CUDAGraphHook(),
            Made(model_of(nn.Sequential(nn.SyncBatchNorm(1)))),
            'no SyncBatchNorm',
        ),
        (
            CUDAGraphHook(),
            Made(model_of(Recomputing(1, 1, 1))),
            'set with_cp=False',
        ),
        (
            CUDAGraphHook(),
            Made(model_of(nn.ReLU()), compile=True),
            'cannot be combined with compile',
        ),
    ],
    ids=['absent', 'parameter', 'sync', 'with-cp', 'compile'],
)
def test_what_cannot_be_captured_is_refused(hook, runner, message):
    with pytest.raises(ValueError, match=message):
        hook.before_train(runner)


def test_what_cannot_be_captured_is_trained_where_that_is_not_asked_for(
    package_log,
):
    part = Recomputing(1, 1, 1)
    hook = CUDAGraphHook(strict=False)
    hook.before_train(Made(model_of(part)))
    hook.before_train_iter(None, 0)
    hook.after_train(None)
    (record,) = package_log.records
    assert record.levelno == logging.WARNING
    assert 'without CUDA graphs' in record.getMessage()
    assert 'set with_cp=False' in record.getMessage()
    assert not part._forward_pre_hooks


class Waiting(nn.Conv2d):
    """Waits for the GPU, which a graph cannot."""

    def forward(self, x):
        if x.sum().item() > 1e9:
            raise AssertionError
        return super().forward(x)


@NEEDS_GPU
def test_training_goes_on_after_a_capture_that_failed(package_log):
    part = Waiting(3, 4, 1).cuda()
    runner = Made(model_of(part))
    hook = CUDAGraphHook(repeats=1, strict=False)
    hook.before_train(runner)
    image = torch.rand(2, 3, 4, 4, device='cuda')
    for _ in range(3):
        step(hook, runner, image).sum().backward()
    hook.after_train(runner)
    messages = [record.getMessage() for record in package_log.records]
    assert len([m for m in messages if 'without CUDA graphs' in m]) == 1
    assert not part._forward_pre_hooks
    # Random numbers are drawn as before, too.
    image = torch.rand_like(image)
    torch.testing.assert_close(part(image), nn.Conv2d.forward(part, image))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_warns_and_trains(tmp_path, package_log):
    losses, model, _ = run(tmp_path, 'fp32', [HOOK])
    assert len(losses) == 9
    warnings = [
        record
        for record in package_log.records
        if record.levelno == logging.WARNING
    ]
    assert len(warnings) == 1
    assert 'backbone is not on a CUDA device' in warnings[0].getMessage()
    assert not model.backbone._forward_pre_hooks


@pytest.fixture
def part():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def step(hook, runner, image, *, training=True):
    hook.before_train_iter(runner, 0)
    runner.model.train(training)
    with torch.set_grad_enabled(training):
        return runner.model['backbone'](image)


def test_shapes_are_captured_after_their_repeats(
    part,
    monkeypatch,
    package_log,
):
    make_up_graphs(monkeypatch)
    replays = count_replays(monkeypatch)
    runner = Made(model_of(part))
    hook = CUDAGraphHook(shapes=2, repeats=2)
    hook.before_train(runner)
    images = [torch.rand(1, 3, size, 4) for size in (4, 5, 6)]
    for _ in range(3):
        step(hook, runner, images[0], training=False)
    runner.model.train()
    for image in (images[0], images[1], images[0]):
        step(hook, runner, image)
    assert 'forward' not in part.__dict__
    step(hook, runner, images[1])
    assert 'captured backbone for inputs of (1, 3, 4, 4)' in package_log.text
    assert part._forward_pre_hooks
    step(hook, runner, images[0]).sum().backward()
    assert len(replays) == 2
    assert '(1, 3, 5, 4) in torch.float32, no autocast' in package_log.text
    assert not part._forward_pre_hooks
    for _ in range(3):
        step(hook, runner, images[2])
    assert len(replays) == 2
    hook.after_train(runner)
    assert 'forward' not in part.__dict__


def test_several_parts_are_captured_each_for_itself(
    part,
    monkeypatch,
    package_log,
):
    make_up_graphs(monkeypatch)
    replays = count_replays(monkeypatch)
    model = nn.ModuleDict(dict(backbone=part, neck=Recomputing(4, 4, 1)))
    model['head'] = nn.Conv2d(4, 2, 1)
    runner = Made(model)
    hook = CUDAGraphHook(['backbone', 'neck', 'head'], repeats=1, strict=False)
    hook.before_train(runner)
    assert 'training neck without CUDA graphs' in package_log.text
    image = torch.rand(1, 3, 4, 4)
    for _ in range(2):
        model['head'](
            model['neck'](step(hook, runner, image))
        ).sum().backward()
    assert len(replays) == 4
    hook.after_train(runner)
    for module in model.values():
        assert 'forward' not in module.__dict__
        assert not module._forward_pre_hooks


def test_a_training_without_a_capture_is_told(
    part,
    monkeypatch,
    package_log,
):
    make_up_graphs(monkeypatch)
    runner = Made(model_of(part))
    hook = CUDAGraphHook()
    hook.before_train(runner)
    step(hook, runner, torch.rand(1, 3, 4, 4))
    hook.after_train(runner)
    assert 'CUDAGraphHook captured nothing' in package_log.text
    assert not part._forward_pre_hooks


def close(actual, expected, wrapper):
    half = wrapper in ('bf16', 'fp16')
    tolerance = dict(rtol=5e-2 if half else 2e-3, atol=1e-2 if half else 1e-4)
    torch.testing.assert_close(actual, expected, **tolerance)


@NEEDS_GPU
@pytest.mark.parametrize('wrapper', train_classifier.WRAPPERS)
def test_a_training_with_graphs_equals_one_without(
    wrapper, tmp_path, monkeypatch
):
    losses, _, state = run(tmp_path / 'plain', wrapper, [])
    replays = count_replays(monkeypatch)
    graphed = run(tmp_path / 'graphed', wrapper, [HOOK])
    assert len(replays) == REPLAYS
    assert 'forward' not in graphed[1].backbone.__dict__
    close(graphed[0], losses, wrapper)
    close(graphed[2], state, wrapper)


@NEEDS_GPU
def test_averaged_weights_follow(tmp_path, monkeypatch):
    average = dict(type='EMAHook', momentum=0.1)
    losses, _, state = run(tmp_path / 'plain', 'fp32', [average])
    replays = count_replays(monkeypatch)
    graphed = run(tmp_path / 'graphed', 'fp32', [average, HOOK])
    assert len(replays) == REPLAYS
    close(graphed[0], losses, 'fp32')
    close(graphed[2], state, 'fp32')


@NEEDS_GPU
def test_both_sizes_of_batches_are_captured(tmp_path, monkeypatch):
    replays = count_replays(monkeypatch)
    run(tmp_path, 'fp32', [HOOK | dict(shapes=2, repeats=1)])
    # Of nine batches, the first of each size is watched.
    assert len(replays) == 2 * 7


def launch(*arguments):
    """What two processes of the script print, by rank."""
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    outcome = run_python(
        *('-m', 'torch.distributed.run', '--master-port', port),
        *('--nproc-per-node', 2, SCRIPT, *arguments),
    )
    text = '\n'.join(outcome.lines())
    # Both write to one stream, and may end up on one line.
    starts = [match.start() for match in re.finditer(r'\{"rank"', text)]
    decode = json.JSONDecoder().raw_decode
    reports = [decode(text, start)[0] for start in starts]
    return sorted(reports, key=lambda report: report['rank'])


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.device_count() < 2,
    reason='needs two GPUs',
)
@pytest.mark.parametrize('wrapper', [[], ['--flat']], ids=['usual', 'flat'])
def test_two_processes_train_the_same_with_graphs(tmp_path, wrapper):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    plainly = launch(tmp_path / 'plain')
    ranks = launch(tmp_path / 'graphed', '--hook', *wrapper)
    assert [line['rank'] for line in ranks] == [0, 1]
    for plain, graphed in zip(plainly, ranks, strict=True):
        assert plain['replays'] == 0
        # Of five samples a process, a batch is full and one is single; the
        # full one of the first epoch is watched.
        assert graphed['replays'] == 2 * 2
        close(graphed['losses'], plain['losses'], 'fp32')
        close(
            [torch.tensor(w) for w in graphed['weights'].values()],
            [torch.tensor(w) for w in plain['weights'].values()],
            'fp32',
        )
    first, second = ranks
    for name, weight in first['weights'].items():
        if 'running' not in name:
            assert weight == second['weights'][name], name
