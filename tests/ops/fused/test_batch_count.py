"""The number of batches that a batch norm counts while it trains."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from evmamba_mm.layers.conv_norm import norm_act

from .kernel_cases import normal


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=['torch', 'triton'])
def backend(request, monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', request.param)
    return request.param


@pytest.fixture
def norm(device):
    return nn.BatchNorm2d(130).to(device)


def map_of(norm, batch=2):
    return normal(
        batch, 3, 5, 130, dtype=torch.float32, device=norm.weight.device
    )


def test_one_a_training_step(backend, norm):
    count = norm.num_batches_tracked
    count.fill_(2**31 - 1)
    for step in range(1, 4):
        version = count._version
        norm_act(norm, map_of(norm), 'relu')
        assert norm.num_batches_tracked is count
        assert count.dtype == torch.int64 and count.shape == ()
        assert count.item() == 2**31 - 1 + step
        assert count._version == version + 1


def test_an_empty_batch_counts(backend, norm):
    norm_act(norm, map_of(norm, 0), 'none')
    assert norm.num_batches_tracked.item() == 1


def test_evaluation_counts_nothing(backend, norm):
    norm.eval()
    norm_act(norm, map_of(norm), 'none')
    norm.running_mean = norm.running_var = None
    norm_act(norm, map_of(norm), 'none')
    assert norm.num_batches_tracked.item() == 0


def test_without_a_count(backend, norm):
    norm.num_batches_tracked = None
    norm_act(norm, map_of(norm), 'none')
    assert norm.num_batches_tracked is None


def test_mean_over_all_batches(backend, norm):
    norm.momentum = None
    x = map_of(norm)
    for shift in (0, 3):
        norm_act(norm, x + shift, 'none')
    assert norm.num_batches_tracked.item() == 2
    expected = x.mean((0, 1, 2)) + 1.5
    torch.testing.assert_close(norm.running_mean, expected)


def test_a_watched_step_counts_one(backend, norm):
    with Watching():
        norm_act(norm, map_of(norm), 'none')
    assert norm.num_batches_tracked.item() == 1


def test_a_compiled_step_counts_one(backend, norm):
    compiled = torch.compile(
        lambda x: norm_act(norm, x, 'relu'),
        fullgraph=True,
        backend='aot_eager',
    )
    for _ in range(2):
        compiled(map_of(norm).requires_grad_()).sum().backward()
    assert norm.num_batches_tracked.item() == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_captured_step_counts_one_a_replay(norm):
    x = map_of(norm)
    norm_act(norm, x, 'relu')
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm_act(norm, x, 'relu')
    for _ in range(3):
        graph.replay()
    assert norm.num_batches_tracked.item() == 4
