"""Weights that a training casts together.

By Triton's interpreter where there is no GPU.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from evmamba_mm import EfficientVMamba
from evmamba_mm.layers import (
    ES2D,
    ConvBranch,
    InvertedResidual,
    PatchMerging,
    narrow,
    narrow_weights,
)

pytest.importorskip('triton', reason='triton is not installed')


class Part(nn.Module):
    """One of each kind of layer whose weights are cast."""

    def __init__(self):
        super().__init__()
        self.branch = ConvBranch(8)
        self.mixer = ES2D(8, d_state=2)
        self.merge = PatchMerging(8, 16)
        self.block = InvertedResidual(16, expand_ratio=2)

    def forward(self, x):
        x = self.mixer(self.branch(x.bfloat16()))
        return self.block(self.merge(x))


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def part(device):
    torch.manual_seed(0)
    return Part().to(device)


@pytest.fixture
def x(device):
    return torch.randn(2, 4, 5, 8, device=device)


def gradients(part, x, together):
    part.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16):
        with narrow_weights([part] if together else [], x):
            y = part(x)
    direction = torch.arange(y.numel(), device=y.device).sin().view_as(y)
    (y.float() * direction).sum().backward()
    return {name: p.grad for name, p in part.named_parameters()}


def cast_layers(part):
    return {
        name
        for name, layer in part.named_modules()
        if narrow.narrow_weight(layer) is not None
    }


@pytest.mark.parametrize('name', ['branch', 'mixer', 'merge', 'block'])
def test_gradients_are_those_of_casts_one_by_one(name, part, x):
    layer = getattr(part, name)
    x = torch.cat([x, x], dim=-1) if name == 'block' else x
    found = gradients(layer, x.bfloat16(), True)
    # The products of the attention are in fp32 without the casts.
    bound = 0.1 if name == 'block' else 1e-2
    wanted = gradients(layer, x.bfloat16(), False)
    # In front of a BatchNorm, a bias and a scale have the one of rounding.
    least = 0.1 * max(x.norm() for x in wanted.values())
    for key, expected in wanted.items():
        assert found[key].dtype == torch.float32
        size = expected.norm().clamp(min=least)
        assert (found[key] - expected).norm() < bound * size, key


def test_layers_find_their_weights(part, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        with narrow_weights([part], x):
            assert cast_layers(part) == {
                'branch.3',
                'mixer.in_proj',
                'mixer.out_proj',
                'merge.reduction',
                'block.conv_pw.0',
                'block.conv_pw2.0',
                'block.se.conv_reduce',
                'block.se.conv_expand',
            }
            weight, bias = narrow.narrow_weight(part.branch[3])
            assert weight.dtype == bias.dtype == torch.bfloat16
            assert torch.equal(weight, part.branch[3].weight.bfloat16())
        assert cast_layers(part) == set()


def test_what_is_frozen_stays_without_gradient(part, x):
    part.mixer.in_proj.weight.requires_grad_(False)
    part.branch[3].bias.requires_grad_(False)
    with torch.autocast(x.device.type, torch.bfloat16):
        with narrow_weights([part], x):
            weight, _ = narrow.narrow_weight(part.mixer.in_proj)
            assert weight is part.mixer.in_proj.weight
    found = gradients(part, x, True)
    assert found['mixer.in_proj.weight'] is None
    assert found['branch.3.bias'] is None
    assert found['branch.3.weight'] is not None


def test_unused_layer_gets_no_gradient(part, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        with narrow_weights([part], x):
            part.merge(x.bfloat16()).float().sum().backward()
    assert part.merge.reduction.weight.grad is not None
    assert part.block.conv_pw[0].weight.grad is None


@pytest.mark.parametrize('case', ['no autocast', 'no gradient', 'torch'])
def test_where_nothing_is_cast(part, x, case, monkeypatch):
    if case == 'torch':
        monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'torch')
    enabled = case != 'no autocast'
    with torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
        with torch.set_grad_enabled(case != 'no gradient'):
            with narrow_weights([part], x) as using:
                assert using is None
                assert cast_layers(part) == set()


def test_layer_without_autocast_reads_its_own(part, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        with narrow_weights([part], x):
            with torch.autocast(x.device.type, enabled=False):
                assert cast_layers(part) == set()
            with torch.autocast(x.device.type, torch.float16):
                assert cast_layers(part) == set()


def test_replaced_weight_is_read(part, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        with narrow_weights([part], x):
            layer = part.merge.reduction
            layer.weight = nn.Parameter(layer.weight.detach() + 1)
            assert narrow.narrow_weight(layer) is None


def test_what_has_hooks_reads_its_own(part, x):
    part.mixer.register_forward_pre_hook(lambda *_: None)
    part.merge.reduction.register_forward_hook(lambda *_: None)
    with torch.autocast(x.device.type, torch.bfloat16):
        with narrow_weights([part], x):
            names = cast_layers(part)
    assert 'block.conv_pw.0' in names
    assert not {'mixer.in_proj', 'merge.reduction'} & names


def test_traced_part_reads_its_own(part, x):
    traced = torch.compile(part.merge, fullgraph=True, backend='aot_eager')
    y = torch.randn(2, 4, 5, 8, device=x.device).bfloat16()
    with torch.autocast(x.device.type, torch.bfloat16):
        for change in (0, 1):
            with torch.no_grad():
                part.merge.reduction.weight += change
            with narrow_weights([part], x):
                found, expected = traced(y), part.merge(y)
            error = (found.float() - expected.float()).abs().max()
            assert error < 0.05 * expected.float().abs().max()


def test_error_inside_leaves_nothing_behind(part, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        with contextlib.suppress(KeyError):
            with narrow_weights([part], x):
                raise KeyError
    assert getattr(narrow._thread, 'using', None) is None


@pytest.mark.parametrize('with_cp', [False, True])
def test_backbone(with_cp, device):
    torch.manual_seed(0)
    model = EfficientVMamba(
        arch=dict(channels=(8, 16), depths=(1, 1)),
        block_types=('evss', 'inverted_residual'),
        d_state=2,
        with_cp=with_cp,
    ).to(device)
    image = torch.randn(2, 3, 20, 24, device=device)
    with torch.autocast(device, torch.bfloat16):
        maps = model(image)
    sum(y.float().square().mean() for y in maps).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_block_that_is_computed_again(part, x):
    """By the user, where nothing is cast together."""

    class Again(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, y):
            return checkpoint(self.block, y, use_reentrant=False)

    y = torch.cat([x, x], dim=-1).bfloat16()
    expected = gradients(part.block, y, True)
    found = gradients(Again(part.block), y, True)
    for name, value in expected.items():
        # Autocast's casts have their gradients in another order.
        error = (found[f'block.{name}'] - value).abs().max()
        assert error <= 1e-2 * value.abs().max() + 1e-3, name


def test_bias_that_is_no_parameter(part, x):
    y = torch.cat([x, x], dim=-1).bfloat16()
    prune.random_unstructured(part.block.se.conv_reduce, 'bias', 0.5)
    prune.random_unstructured(part.branch[3], 'bias', 0.5)
    assert gradients(part.block, y, True)['se.conv_reduce.bias_orig'].any()
    assert gradients(part.branch, x.bfloat16(), True)['3.bias_orig'].any()
