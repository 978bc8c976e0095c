"""Weights that a backbone's call makes ready for its layers.

By Triton's interpreter where there is no GPU.
"""

import copy

import pytest
import torch
from torch import nn

from evmamba_mm.layers import (
    ES2D,
    SS2D,
    ConvBranch,
    InvertedResidual,
    PatchMerging,
    SqueezeExcite,
    prepared,
    prepared_weights,
)
from evmamba_mm.ops.scan_cuda import kernel_rows

from .norms import set_norms

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
    set_norms(module)
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
    assert prepared._found() is None


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


class Mixing(nn.Module):
    """A backbone of one mixer, and the rows that its scan was given."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer
        self.rows = []

    def forward(self, x):
        with prepared_weights(self, x):
            return self.mixer(x)


@pytest.fixture(params=[ES2D, SS2D])
def mixing(request, device, monkeypatch):
    module = Mixing(request.param(6)).to(device).eval()
    kind = request.param.__name__.lower()
    place = f'evmamba_mm.layers.{kind}.{kind}_scan'
    # What a scan gives is not looked at.
    monkeypatch.setattr(
        place, lambda u, *_, rows, **__: (module.rows.append(rows), u)[1]
    )
    return module


def expected_rows(mixer, dtype):
    """With what is read only: padding holds nothing."""
    rows = kernel_rows(mixer.x_proj_weight.detach(), mixer.A_logs.shape[1])
    return rows[:, : mixer.x_proj_weight.shape[1]].to(dtype)


def assert_rows(rows, mixer, dtype):
    expected = expected_rows(mixer, dtype)
    count = expected.shape[1]
    assert rows.dtype == dtype
    # Triton's interpreter cuts a bfloat16 off where a GPU rounds it.
    torch.testing.assert_close(rows[:, :count], expected, rtol=8e-3, atol=0)
    assert not rows[:, count:].any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_a_scan_is_given_its_rows(dtype, mixing, x):
    narrow = dtype != torch.float32
    with torch.autocast(x.device.type, torch.bfloat16, enabled=narrow):
        for _ in range(3):
            run(mixing, x)
    first, *ready_ones = mixing.rows
    assert first is None
    for rows in ready_ones:
        assert_rows(rows, mixing.mixer, dtype)


def test_rows_follow_an_optimiser(mixing, x):
    for _ in range(2):
        run(mixing, x)
    optimiser = torch.optim.SGD(mixing.parameters(), lr=0.5)
    for p in mixing.parameters():
        p.grad = torch.randn_like(p)
    before = mixing.mixer.x_proj_weight.detach().clone()
    optimiser.step()
    assert not torch.equal(before, mixing.mixer.x_proj_weight)
    run(mixing, x)
    assert_rows(mixing.rows[-1], mixing.mixer, torch.float32)


def test_rows_of_a_replaced_parameter_are_not_used(mixing, x):
    for _ in range(2):
        run(mixing, x)
    mixer = mixing.mixer
    with torch.no_grad(), prepared_weights(mixing, x):
        assert prepared.ready_rows(mixer, 'x_proj_weight') is not None
        mixer.x_proj_weight = nn.Parameter(2 * mixer.x_proj_weight)
        assert prepared.ready_rows(mixer, 'x_proj_weight') is None
    for _ in range(3):
        run(mixing, x)
    assert mixing.rows[-3] is None
    assert_rows(mixing.rows[-1], mixer, torch.float32)


def test_no_rows_with_gradients(mixing, x):
    for _ in range(2):
        run(mixing, x)
    mixing(x).sum().backward()
    assert mixing.rows[-1] is None


def test_a_copy_has_rows_of_its_own(mixing, x):
    for _ in range(2):
        run(mixing, x)
    twin = copy.deepcopy(mixing)
    twin.mixer.x_proj_weight.data.mul_(2)
    for _ in range(2):
        run(twin, x)
    assert_rows(mixing.rows[-1], twin.mixer, torch.float32)
    run(mixing, x)
    assert_rows(mixing.rows[-1], mixing.mixer, torch.float32)


def test_a_weight_that_is_computed_is_left_alone(backbone, x, monkeypatch):
    """A parametrisation gives another tensor whenever it is asked."""
    reduction = backbone.merge.reduction
    nn.utils.parametrizations.weight_norm(reduction)
    with torch.autocast(x.device.type, torch.bfloat16):
        expected = run(backbone, x, monkeypatch, prepare=False).float()
        for _ in range(3):
            made = run(backbone, x).float()
            assert (made - expected).norm() / expected.norm() < 2e-2
    found = ready(backbone, torch.bfloat16).found
    assert (id(reduction), id(None)) not in found
    assert len(found) == 7
