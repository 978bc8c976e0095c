"""Casts of a block's weights for inference."""

import pytest
import torch
from torch import nn

from evmamba_mm.fast import run_block

from .changes import DEVICE, built, input_of

BF16 = torch.bfloat16
# The blocks, and how many parameters of linear maps they have.
CAST = {'evss': 4, 'ss2d': 2, 'inverted': 6}


@pytest.fixture
def launches(monkeypatch):
    """The number of tensors that each launch casts."""
    sizes, copy = [], torch._foreach_copy_

    def counting(new, old):
        sizes.append(len(new))
        copy(new, old)

    monkeypatch.setattr(torch, '_foreach_copy_', counting)
    return sizes


@pytest.mark.parametrize('kind', CAST)
def test_one_launch_casts_a_block(kernels, launches, kind):
    block, x = built(kind).eval(), input_of(kind)
    with torch.no_grad(), torch.autocast(DEVICE, BF16):
        first = run_block(block, x)
        for parameter in block.parameters():
            parameter.data.copy_(1.5 * parameter)
        second = run_block(block, x)
    assert launches == 2 * [CAST[kind]]
    assert not torch.equal(first, second)


@pytest.mark.parametrize('kind', CAST)
def test_nothing_is_cast_for_gradients_or_without_autocast(
    kernels, launches, kind
):
    block, x = built(kind).eval(), input_of(kind)
    with torch.autocast(DEVICE, BF16):
        run_block(block, x)
    with torch.no_grad():
        run_block(block, x)
        half = block.to(BF16)
        run_block(half, x.to(BF16))
        with torch.autocast(DEVICE, BF16):
            run_block(half, x.to(BF16))
    assert launches == []


def test_cast_parameters():
    pytest.importorskip('triton', reason='triton is not installed')
    from evmamba_mm.fast.blocks import _linear_maps

    modules = [nn.Linear(6, 4), nn.Conv2d(4, 3, 1, bias=False)]
    modules.append(nn.Linear(3, 2).to(BF16))
    kept = _linear_maps(BF16, *modules)
    assert kept[0] == (modules[0].weight, modules[0].bias)
    with torch.no_grad():
        (first, bias), (second, none), last = _linear_maps(BF16, *modules)
    assert torch.equal(first, modules[0].weight.to(BF16))
    assert torch.equal(bias, modules[0].bias.to(BF16))
    assert torch.equal(second, modules[1].weight.flatten(1).to(BF16))
    assert none is None
    assert last[0] is modules[2].weight and last[1] is modules[2].bias
