"""A recomputed backward gives the same numbers, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from evmamba_mm.backbones import EfficientVMamba
from evmamba_mm.backbones.recompute import checkpoint_block
from evmamba_mm.layers import ES2D, EVSSBlock, InvertedResidual

BLOCKS = {
    'evss': lambda: EVSSBlock(8, ES2D(8), drop_path_rate=0.5),
    'inverted-residual': lambda: InvertedResidual(8, drop_path_rate=0.5),
}


def call(block, x):
    return block(x)


def step(model, run, *inputs):
    """What a step leaves behind: gradients, statistics, and the outputs."""
    torch.manual_seed(1)
    outputs = run(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(y.square().sum() for y in outputs).backward()
    return {
        **{f'output{i}': y for i, y in enumerate(outputs)},
        **{
            f'{name}.grad': p.grad
            for name, p in model.named_parameters()
            if p.requires_grad
        },
        **model.state_dict(),
    }


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize('name', BLOCKS)
def test_statistics_count_a_batch_once(name):
    torch.manual_seed(0)
    block = BLOCKS[name]()
    twin = copy.deepcopy(block)
    x = torch.randn(4, 8, 5, 3)
    expected = step(block, block, x)
    found = step(twin, lambda x: checkpoint_block(twin, x, call), x)
    assert_equal(found, expected)
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.num_batches_tracked == 1 for m in norms)


@pytest.mark.parametrize('mode', ['train', 'norm_eval', 'frozen', 'eval'])
def test_a_backbone_trains_the_same(mode):
    torch.manual_seed(0)
    model = EfficientVMamba(
        'atto',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.5,
        norm_eval=mode == 'norm_eval',
        frozen_stages=2 if mode == 'frozen' else -1,
    ).train(mode != 'eval')
    twin = copy.deepcopy(model)
    twin.with_cp = True
    image = torch.randn(3, 3, 48, 40)
    assert_equal(step(twin, twin, image), step(model, model, image))


def test_the_norms_own_buffers_stay_in_place():
    block = InvertedResidual(8)
    before = {n: b.data_ptr() for n, b in block.named_buffers()}
    checkpoint_block(block, torch.randn(2, 8, 3, 3), call).sum().backward()
    assert {n: b.data_ptr() for n, b in block.named_buffers()} == before


def test_buffers_come_back_after_an_error():
    block = InvertedResidual(8)
    before = {n: b.data_ptr() for n, b in block.named_buffers()}
    y = checkpoint_block(block, torch.randn(2, 8, 3, 3), call)

    def fail(*_):
        raise RuntimeError('in the second forward')

    block.conv_pw.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='in the second forward'):
        y.sum().backward()
    assert {n: b.data_ptr() for n, b in block.named_buffers()} == before


def saved_bytes(model, image):
    """Bytes that autograd holds for the backward."""
    total = 0

    def pack(x):
        nonlocal total
        total += x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(image)
    return total


def test_less_is_held():
    image = torch.randn(2, 3, 64, 64)
    model = EfficientVMamba('atto')
    recomputing = EfficientVMamba('atto', with_cp=True)
    assert saved_bytes(recomputing, image) < saved_bytes(model, image) / 4


def test_nothing_is_recomputed_without_gradients():
    model, calls = EfficientVMamba('atto', with_cp=True), []
    model.stages[0][0].norm.register_forward_hook(lambda *_: calls.append(1))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        model(image)
    model(image)[0].sum().backward()
    assert len(calls) == 3
