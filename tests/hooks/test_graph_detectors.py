"""Detectors as shipped, whose parts are captured for a few sizes."""

import pytest
import torch

from ..configs.leaves import load
from ..graph_fixtures import NEEDS_GPU, count_replays
from . import train_detector

pytest.importorskip('mmdet', reason='mmdet is not installed')
KINDS = pytest.mark.parametrize('kind', train_detector.LEAVES)


def hooks_of(kind):
    (hook,) = load(train_detector.LEAVES[kind]).custom_hooks
    assert hook.type == 'CUDAGraphHook'
    assert hook.strict is False
    return hook


def run(kind, folder, hooks, rounds):
    return train_detector.train(
        train_detector.config(kind, folder, hooks, rounds)
    )


@KINDS
@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_the_shipped_config_trains_without_a_gpu(
    kind,
    tmp_path,
    package_log,
):
    losses, model = run(kind, tmp_path, [hooks_of(kind)], 2)
    assert len(losses) == 4
    assert all(loss['loss'] > 0 for loss in losses)
    for name in hooks_of(kind).module:
        assert f'does nothing: {name} is not on a CUDA' in package_log.text
        assert not model.get_submodule(name)._forward_pre_hooks


@NEEDS_GPU
@KINDS
def test_a_training_with_graphs_equals_one_without(
    kind, tmp_path, monkeypatch
):
    rounds = 6
    plain, _ = run(kind, tmp_path / 'plain', [], rounds)
    replays = count_replays(monkeypatch)
    graphed, model = run(kind, tmp_path / 'graphed', [hooks_of(kind)], rounds)
    # Three of six batches of each size are counted; forward and backward of
    # three parts.
    assert len(replays) == 2 * 3 * 2 * 3
    assert len(graphed) == len(plain) == 2 * rounds
    for one, other in zip(graphed, plain, strict=True):
        for name in (n for n in other if 'loss' in n):
            assert one[name] == pytest.approx(
                other[name], rel=0.05, abs=0.01
            ), name
    for name in hooks_of(kind).module:
        assert 'forward' not in model.get_submodule(name).__dict__
