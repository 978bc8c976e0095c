"""The block in inference, beside the one that a gradient goes through.

By Triton's interpreter where there is no GPU.
"""

import pytest
import torch
from torch import nn

from evmamba_mm.layers import (
    InvertedResidual,
    conv_norm,
    inverted_residual,
    prepared_weights,
)

from .norms import set_norms

pytest.importorskip('triton', reason='triton is not installed')


class Backbone(nn.Module):
    """Without what makes weights ready, a CPU folds none."""

    def __init__(self, rate):
        super().__init__()
        self.block = InvertedResidual(12, drop_path_rate=rate)

    def forward(self, x):
        with prepared_weights(self, x):
            return self.block(x)


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def backbone(device):
    torch.manual_seed(0)
    module = Backbone(0.5)
    set_norms(module)
    return module.to(device).eval()


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of what only an inference uses."""
    seen = []
    add, conv = inverted_residual.gated_linear_add, conv_norm.depthwise_conv3x3

    def gated_linear_add(*arguments):
        seen.append('add')
        return add(*arguments)

    def depthwise_conv3x3(x, weight, bias, activation='none', before='none'):
        if before != 'none':
            seen.append(before)
        return conv(x, weight, bias, activation, before)

    for owner, function in (
        (inverted_residual, gated_linear_add),
        (conv_norm, depthwise_conv3x3),
    ):
        monkeypatch.setattr(owner, function.__name__, function)
    return seen


@pytest.mark.parametrize(
    ('autocast', 'stream'),
    [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)],
    ids=['fp32', 'bf16-of-wide', 'bf16'],
)
@pytest.mark.parametrize('size', [(5, 7), (1, 1), (7, 7)], ids=str)
def test_inference_gives_what_training_would(
    size, autocast, stream, backbone, device, calls
):
    x = torch.randn(3, *size, 12, device=device).to(stream)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        expected = backbone(x)
        assert calls == []
        with torch.no_grad():
            results = [backbone(x) for _ in range(2)]
    # By a CPU, the weights of the first call are not ready yet.
    assert calls[-2:] == ['relu', 'add']
    for y in results:
        assert y.dtype == expected.dtype
        error = (y - expected).norm() / expected.norm()
        assert error < (2e-2 if autocast else 1e-5)


@torch.no_grad()
def test_paths_are_dropped_without_gradients_too(backbone, device, calls):
    x = torch.randn(64, 2, 2, 12, device=device)
    for _ in range(2):
        backbone(x)
    calls.clear()
    backbone.block.drop_path.train()
    y = backbone(x)
    dropped = (y == x).flatten(1).all(1)
    assert 0 < dropped.sum() < 64
    assert 'add' not in calls


@torch.no_grad()
def test_statistics_of_a_batch_are_not_folded(backbone, device, calls):
    x = torch.randn(4, 2, 2, 12, device=device)
    for _ in range(2):
        backbone(x)
    calls.clear()
    before = backbone.block.conv_pw2[1].running_mean.clone()
    backbone.train()
    backbone(x)
    assert calls == []
    assert not torch.equal(before, backbone.block.conv_pw2[1].running_mean)
