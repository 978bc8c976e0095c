"""What the compiler sees of a block on a GPU."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import evmamba_mm.fast.traced as fast_traced
from evmamba_mm.deploy import fuse
from evmamba_mm.fast import run_block
from evmamba_mm.layers import ConvSqueezeExcite

from .changes import DEVICE, built, input_of
from .test_models import small

OP = 'evmamba_mm.depthwise_conv3x3'

pytestmark = pytest.mark.skipif(
    not fast_traced._MODES_TRACED, reason='needs torch 2.7'
)


@pytest.fixture(autouse=True)
def on_any_device(monkeypatch):
    """Lets Triton's interpreter stand in for a GPU."""
    pytest.importorskip('triton', reason='triton is not installed')
    torch._dynamo.reset()
    monkeypatch.setattr(fast_traced, '_kernels_run', lambda x: True)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def compiled(module, x, grads=False):
    """Result, and how often each function is called, in one graph."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(copy.deepcopy(graph.graph))
        graphs[-1].eliminate_dead_code()
        return graph

    function = torch.compile(module, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(grads):
        y = function(x)
    (graph,) = graphs
    calls = Counter(
        str(node.target) for node in graph.nodes if node.op == 'call_function'
    )
    return y, calls


def count(calls, *words):
    return sum(n for name, n in calls.items() if any(w in name for w in words))


class Block(nn.Module):
    def __init__(self, block, fused='auto'):
        super().__init__()
        self.block, self.fused = block, fused

    def forward(self, x):
        return run_block(self.block, x, self.fused)


@pytest.mark.parametrize('grads', [True, False])
@pytest.mark.parametrize(
    ('kind', 'convolutions'),
    [('evss', 2), ('ss2d', 1), ('inverted', 1), ('stem', 0), ('merging', 0)],
)
def test_convolutions_of_a_block(kind, convolutions, grads):
    block, x = built(kind).eval(), input_of(kind)
    y, calls = compiled(Block(block), x, grads)
    torch.testing.assert_close(y, block(x), rtol=1e-4, atol=1e-4)
    assert count(calls, OP) == convolutions
    assert count(calls, 'conv2d') == 0


def test_false_leaves_all_to_the_compiler():
    block, x = built('inverted').eval(), input_of('inverted')
    _, calls = compiled(Block(block, False), x)
    assert count(calls, OP) == 0
    assert count(calls, 'conv2d') == 5


def test_activations_are_joined_where_nothing_else_uses_a_result():
    model = fuse(small())
    x = torch.randn(2, 3, 32, 32, device=DEVICE)
    expected = model(x)[-1]
    y, calls = compiled(model, x)
    torch.testing.assert_close(y[-1], expected, rtol=1e-4, atol=1e-4)
    blocks = [b for stage in model.stages for b in stage]
    attentions = sum(isinstance(m, ConvSqueezeExcite) for m in model.modules())
    # The ReLU left is the one inside of each channel attention.
    assert count(calls, 'relu') == attentions < len(blocks)


@pytest.mark.parametrize(
    'hook',
    [
        lambda module, args, y: y.mul_(2),
        lambda module, args, y: y * 2,
        lambda module, args, y: [args[0].mul_(2)] and None,
        lambda module, args, y: [torch.atleast_1d([y])[0].mul_(2)] and None,
        lambda module, args, y: None,
    ],
    ids=['in place', 'replaced', 'input in place', 'in a list', 'seen'],
)
@pytest.mark.parametrize('path', ['conv_dw.0', 'conv_dw', 'conv_pw'])
def test_a_hook_between_takes_effect(path, hook):
    block, x = fused_inverted(), input_of('inverted')
    block.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        expected = block(x.clone())
    y, _ = compiled(Block(block), x.clone())
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'change',
    [
        lambda stage: setattr(stage, 'forward', torch.sigmoid),
        lambda stage: stage.register_forward_hook(lambda *args: args[2] * 2),
    ],
    ids=['forward', 'hook'],
)
def test_a_change_of_a_stage_takes_effect(change):
    model, x = small(), torch.randn(2, 3, 32, 32, device=DEVICE)
    unchanged = model.eval()(x)[-1]
    change(model.stages[-1])
    expected = model(x)[-1]
    assert not torch.allclose(expected, unchanged)
    y, _ = compiled(model, x)
    torch.testing.assert_close(y[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'act',
    [
        lambda x: F.relu(x, inplace=True) + x,
        lambda x: F.relu(x, True) + x,
        lambda x: F.silu(x, inplace=True) + x,
        lambda x: F.relu(input=x) + x,
    ],
    ids=['keyword', 'position', 'silu', 'not in place'],
)
def test_an_activation_in_place_takes_effect(act):
    block, x = fused_inverted(), input_of('inverted')
    block.conv_dw[2].forward = act
    with torch.no_grad():
        expected = block(x)
    y, _ = compiled(Block(block), x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def fused_inverted():
    block = built('inverted').eval()
    for layers in (block.conv_pw, block.conv_dw, block.conv_pw2):
        layers[1] = nn.Identity()
    return block


def test_a_tanh_gelu_is_not_joined():
    block, x = built('evss').eval(), input_of('evss')
    block.conv_branch[1] = nn.Identity()
    block.conv_branch[2] = nn.GELU('tanh')
    y, calls = compiled(Block(block), x)
    torch.testing.assert_close(y, block(x), rtol=1e-4, atol=1e-4)
    # Beside it, one for each branch's channel attention.
    assert count(calls, 'gelu') == 3
