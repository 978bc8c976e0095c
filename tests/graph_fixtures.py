"""Counts replays; on a machine without a GPU, of graphs that are made up.

A made-up graph launches nothing: what was computed at the capture stays. It
shows which call is replayed, and nothing of what a replay computes.
"""

import contextlib

import pytest
import torch

NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='CUDA graphs need a GPU'
)
DEVICES = ['made-up', pytest.param('cuda', marks=NEEDS_GPU)]


class _Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class _Graph:
    def pool(self):
        return (0, 0)

    def replay(self):
        pass


def _anything(*args, **kwargs):
    return contextlib.nullcontext()


def make_up_graphs(monkeypatch):
    """Lets the CPU pass for a GPU with graphs."""
    monkeypatch.setattr(torch.Tensor, 'is_cuda', property(lambda self: True))
    for name, value in dict(
        CUDAGraph=_Graph,
        Stream=_Stream,
        current_stream=_Stream,
        stream=_anything,
        device=_anything,
        graph=_anything,
        is_current_stream_capturing=lambda: False,
    ).items():
        monkeypatch.setattr(torch.cuda, name, value)


def count_replays(monkeypatch):
    """A list that grows by one with every replay."""
    replays = []
    graph = torch.cuda.CUDAGraph
    plain = graph.replay

    def replay(self):
        replays.append(self)
        plain(self)

    monkeypatch.setattr(graph, 'replay', replay)
    return replays


def exact_convolutions():
    """Context in which equal convolutions give equal numbers."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """A device whose graphs are made up, and a GPU."""
    if request.param == 'made-up':
        make_up_graphs(monkeypatch)
        yield torch.device('cpu')
        return
    with exact_convolutions():
        yield torch.device(request.param, 0)


@pytest.fixture
def replays(device, monkeypatch):
    """The replays of a test."""
    return count_replays(monkeypatch)
