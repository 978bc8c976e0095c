"""What is put on or around a layer of a block is not passed by."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from evmamba_mm.layers import (
    ES2D,
    ConvBranch,
    EVSSBlock,
    InvertedResidual,
    PatchEmbed,
    PatchMerging,
    SqueezeExcite,
    prepared_weights,
)

pytest.importorskip('triton', reason='triton is not installed')


class Stem(nn.Module):
    """One of each kind of layer that is read instead of called."""

    def __init__(self):
        super().__init__()
        self.embed = PatchEmbed(3, 8)
        self.block = EVSSBlock(8, ES2D(8))
        self.merge = PatchMerging(8, 12)
        self.residual = InvertedResidual(12, expand_ratio=2)

    def forward(self, image):
        with prepared_weights(self, image):
            x = self.block(self.embed(image))
            return self.residual(self.merge(x))


LAYERS = (
    'embed.conv',
    'embed.norm',
    'block.norm',
    'block.mixer.in_proj',
    'block.mixer.conv2d',
    'block.mixer.out_norm',
    'block.mixer.out_proj',
    'block.conv_branch.0',
    'block.conv_branch.1',
    'block.conv_branch.3',
    'block.se.global_reduce',
    'block.se.channel_select',
    'merge.norm',
    'merge.reduction',
    'residual.conv_pw.0',
    'residual.conv_pw.1',
    'residual.conv_dw.0',
    'residual.conv_dw.1',
    'residual.se.conv_reduce',
    'residual.se.conv_expand',
    'residual.conv_pw2.0',
    'residual.conv_pw2.1',
)


# Those of the others are read whoever looks on, as by operations of their own.
SEEN = (
    'embed.conv',
    'embed.norm',
    'block.norm',
    'block.mixer',
    'block.se.global_reduce',
    'block.se.channel_select',
    'merge.norm',
    'merge.reduction',
    'residual.se',
)


@pytest.fixture(params=['torch', 'triton'])
def device(request, monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', request.param)
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    return Stem().to(device).eval()


@pytest.fixture
def image(device):
    return torch.randn(2, 3, 12, 16, device=device)


class Adapter(nn.Module):
    """What fine-tuning puts in the place of a layer, with its weight."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def __getattr__(self, name):
        if name == 'layer':
            return super().__getattr__(name)
        return getattr(self.layer, name)

    def forward(self, x):
        return 20 * self.layer(x).abs() + 5


def run(model, image, grads):
    """The third call of an inference, when weights are ready."""
    with torch.set_grad_enabled(grads):
        for _ in range(1 if grads else 3):
            y = model(image)
    return y


@pytest.mark.parametrize('grads', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('name', SEEN)
def test_a_hook_is_called(name, grads, model, image):
    seen = []
    plain = run(model, image, grads)
    model.get_submodule(name).register_forward_hook(
        lambda *_: seen.append(name)
    )
    torch.testing.assert_close(
        run(model, image, grads), plain, rtol=1e-4, atol=1e-5
    )
    assert seen


@pytest.mark.parametrize('grads', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('name', LAYERS)
def test_an_adapter_counts(name, grads, model, image):
    plain = run(model, image, grads)
    parent, _, child = name.rpartition('.')
    layer = model.get_submodule(name)
    setattr(model.get_submodule(parent), child, Adapter(layer))
    assert (run(model, image, grads) - plain).abs().max() > 1e-4


@pytest.mark.parametrize('name', ['embed.conv', 'residual.conv_dw.0'])
def test_a_pruned_layer_trains(name, model, image):
    layer = model.train().get_submodule(name)
    prune.l1_unstructured(layer, 'weight', 0.5)
    for _ in range(2):
        model(image).square().mean().backward()
    assert layer.weight_orig.grad.count_nonzero() > 0


def test_a_part_with_gradients_inside_an_inference(model, image):
    run(model, image, False)
    inner = model.residual.forward

    def with_gradients(x):
        with torch.enable_grad():
            return inner(x)

    model.residual.forward = with_gradients
    with torch.no_grad():
        y = model(image)
    y.sum().backward()
    for name, parameter in model.residual.named_parameters():
        assert parameter.grad is not None, name


def test_a_part_outside_of_autocast(device, model, image):
    inner = model.residual.forward

    def wide(x):
        with torch.autocast(device, enabled=False):
            return inner(x.float())

    model.residual.forward = wide
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        first = model(image)
        for _ in range(3):
            y = model(image)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, first, rtol=2e-2, atol=2e-2)


def test_a_bias_that_came_later_is_followed(model, image):
    run(model, image, False)
    conv = model.residual.conv_pw[0]
    conv.bias = nn.Parameter(torch.ones_like(conv.weight[:, 0, 0, 0]))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    run(model, image, False)
    conv.bias.data = conv.bias.data + 1
    expected = copy.deepcopy(model)(image)
    torch.testing.assert_close(
        run(model, image, False), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('make', [lambda: ES2D(8), lambda: ConvBranch(8)])
def test_nothing_is_kept_alive(make, device):
    mixer = make().to(device).eval()
    x = torch.randn(1, 4, 4, 8, device=device)
    with torch.no_grad():
        for _ in range(3):
            with prepared_weights(mixer, x):
                mixer(x)
    watched = weakref.ref(mixer)
    del mixer
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize('grads', [False, True], ids=['inference', 'training'])
def test_attention_keeps_the_dtype(grads, device):
    se = SqueezeExcite(16).to(device, torch.bfloat16)
    x = torch.randn(2, 3, 3, 16, device=device, dtype=torch.bfloat16)
    with torch.set_grad_enabled(grads):
        assert se(x).dtype == torch.bfloat16
