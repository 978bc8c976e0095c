"""Weights that a backbone's call makes ready for its layers.

By Triton's interpreter where there is no GPU.
"""

import copy

import pytest
import torch
from torch import nn

from evmamba_mm.layers import (
    ConvBranch,
    InvertedResidual,
    PatchMerging,
    SqueezeExcite,
    prepared,
    prepared_weights,
)

pytest.importorskip('triton', reason='triton is not installed')


class Backbone(nn.Module):
    """One of each kind of layer that has weights to make ready."""

    def __init__(self):
        super().__init__()
        self.branch = ConvBranch(6)
        self.se = SqueezeExcite(6)
        self.merge = PatchMerging(6, 10)
        self.block = InvertedResidual(10, expand_ratio=2)

    def forward(self, x):
        with prepared_weights(self, x):
            x = self.se(self.branch(x))
            return self.block(self.merge(x))


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def backbone(device):
    torch.manual_seed(0)
    module = Backbone()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return module.to(device).eval()


@pytest.fixture
def x(device):
    return torch.randn(2, 4, 5, 6, device=device)


@torch.no_grad()
def run(module, x, monkeypatch=None, prepare=True):
    if prepare:
        return module(x)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, '_current', lambda *_: None)
        return module(x)


def ready(module, dtype=torch.float32):
    return prepared._states[module].ready.get(dtype)


def test_the_second_call_is_ready_and_gives_the_same(backbone, x, monkeypatch):
    expected = run(backbone, x, monkeypatch, prepare=False)
    torch.testing.assert_close(run(backbone, x), expected)
    assert ready(backbone) is None
    torch.testing.assert_close(run(backbone, x), expected)
    # Four convolutions with a norm behind; nothing to cast in fp32.
    assert len(ready(backbone).found) == 4


def test_every_weight_is_found_under_autocast(backbone, x, monkeypatch):
    looked_up = []
    found_one = prepared.ready_weight

    def watch(*arguments):
        looked_up.append(found_one(*arguments) is not None)
        return found_one(*arguments)

    monkeypatch.setattr(prepared, 'ready_weight', watch)
    monkeypatch.setattr('evmamba_mm.layers.conv_norm.ready_weight', watch)
    with torch.autocast(x.device.type, torch.bfloat16):
        expected = run(backbone, x, monkeypatch, prepare=False)
        run(backbone, x)
        looked_up.clear()
        made = run(backbone, x)
    assert looked_up == [True] * 8
    assert len(ready(backbone, torch.bfloat16).found) == 8
    error = (made - expected).norm() / expected.norm()
    assert error < 2e-2


@pytest.mark.parametrize(
    'change',
    [
        lambda m: m.block.conv_pw[0].weight.data.mul_(2),
        lambda m: m.block.conv_dw[1].running_var.mul_(2),
        lambda m: setattr(m.block.conv_pw[1], 'eps', 0.5),
        lambda m: setattr(
            m.block.conv_pw[0],
            'weight',
            nn.Parameter(2 * m.block.conv_pw[0].weight),
        ),
        lambda m: setattr(
            m.block.conv_pw[1],
            'running_mean',
            m.block.conv_pw[1].running_mean + 1,
        ),
        lambda m: m.block.conv_pw.__setitem__(
            1, nn.BatchNorm2d(20).to(m.block.conv_pw[0].weight).eval()
        ),
        lambda m: m.block.conv_pw[1].train(),
        lambda m: m.half().float(),
    ],
    ids=[
        'in place',
        'statistics',
        'eps',
        'parameter',
        'buffer',
        'norm',
        'training',
        'moved',
    ],
)
def test_a_change_is_seen(change, backbone, x, monkeypatch):
    before = [run(backbone, x) for _ in range(2)][-1]
    change(backbone)
    twin = copy.deepcopy(backbone)
    expected = run(twin, x, monkeypatch, prepare=False)
    assert not torch.allclose(before, expected, rtol=1e-5, atol=1e-6)
    for _ in range(3):
        twin.load_state_dict(backbone.state_dict())
        expected = run(twin, x, monkeypatch, prepare=False)
        torch.testing.assert_close(run(backbone, x), expected)


def test_weights_without_memory_are_left_alone(backbone, x):
    weight = backbone.block.conv_pw[0].weight
    kept = weight.detach().clone()
    for _ in range(3):
        weight.untyped_storage().resize_(0)
        with torch.no_grad(), prepared_weights(backbone, x):
            assert prepared.ready_weight(backbone.merge.reduction) is None
            assert getattr(prepared._thread, 'found', None) is None
    weight.untyped_storage().resize_(kept.numel() * 4)
    weight.data.copy_(kept)
    assert ready(backbone) is None


def test_a_norm_that_cannot_be_folded_is_run(backbone, x, monkeypatch):
    norm = nn.BatchNorm2d(20, affine=False).to(x.device).eval()
    nn.init.normal_(norm.running_mean, std=10)
    backbone.block.conv_pw[1] = norm
    with torch.autocast(x.device.type, torch.bfloat16):
        expected = run(backbone, x, monkeypatch, prepare=False).float()
        for _ in range(3):
            error = (run(backbone, x).float() - expected).norm()
            assert error / expected.norm() < 2e-2


def test_gradients_use_the_parameters_themselves(backbone, x):
    for _ in range(2):
        run(backbone, x)
    backbone(x).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_hooks_of_a_layer_are_called(backbone, x, monkeypatch):
    calls = []
    backbone.merge.reduction.register_forward_hook(lambda *_: calls.append(1))
    with torch.autocast(x.device.type, torch.bfloat16):
        for _ in range(3):
            run(backbone, x)
    assert len(calls) == 3


def test_nothing_is_left_ready_behind(backbone, x):
    for _ in range(2):
        run(backbone, x)
    assert prepared.ready_weight(backbone.merge.reduction) is None
    with pytest.raises(ValueError, match='weight must have shape'):
        run(backbone, x[..., :3])
    assert prepared._thread.found is None


def test_a_backbone_can_be_forgotten(device, x):
    module = Backbone().to(device).eval()
    for _ in range(2):
        run(module, x)
    count = len(prepared._states)
    del module
    assert len(prepared._states) == count - 1


def test_what_inference_mode_made_serves_no_grad(backbone, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        with torch.inference_mode():
            made = [backbone(x) for _ in range(2)][-1].float()
        torch.testing.assert_close(run(backbone, x).float(), made.clone())
    with torch.autocast(x.device.type, torch.bfloat16):
        backbone(x).float().sum().backward()
