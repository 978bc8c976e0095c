"""Each block against its equation, written out in torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evmamba_mm.layers import (
    ES2D,
    SS2D,
    DropPath,
    EVSSBlock,
    InvertedResidual,
    LayerNorm,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
)

from .equations import (
    batch_norm,
    layer_norm,
    random_map,
    randomised,
    squeeze_excite,
)


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def conv_branch(branch, x):
    conv, norm, _, pointwise = branch
    x = F.conv2d(x, conv.weight, conv.bias, padding=1, groups=x.shape[1])
    x = F.gelu(batch_norm(norm, x))
    return F.conv2d(x, pointwise.weight, pointwise.bias)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_evss_block_shares_one_channel_attention(training):
    block = randomised(EVSSBlock(16, Double())).train(training)
    x = random_map(2, 16, 5, 6)
    n = layer_norm(block.norm, x)
    scanned, local = 2 * n, conv_branch(block.conv_branch, n)
    gated = [squeeze_excite(block.se, y) for y in (scanned, local)]
    torch.testing.assert_close(block(x), x + sum(gated))


def test_evss_block_without_fusion_has_only_the_mixer():
    block = randomised(EVSSBlock(8, Double(), fusion=False))
    x = random_map(2, 8, 5, 6)
    torch.testing.assert_close(block(x), x + 2 * layer_norm(block.norm, x))
    names = {n.split('.')[0] for n, _ in block.named_parameters()}
    assert names == {'norm'}


def test_patch_embed():
    stem = randomised(PatchEmbed(3, 8))
    image = torch.randn(2, 3, 14, 21)
    x = F.conv2d(image, stem.conv.weight, stem.conv.bias, stride=4)
    assert stem(image).shape == (2, 8, 3, 5)
    torch.testing.assert_close(stem(image), layer_norm(stem.norm, x))


def test_patch_merging_order_and_padding():
    merge = PatchMerging(1, 4)
    nn.init.eye_(merge.reduction.weight)
    y = merge(torch.arange(1.0, 10.0).view(1, 1, 3, 3))
    assert y.shape == (1, 4, 2, 2)
    for (row, column), cells in (
        ((0, 0), [1.0, 4, 2, 5]),
        ((0, 1), [3.0, 6, 0, 0]),
        ((1, 1), [9.0, 0, 0, 0]),
    ):
        expected = F.layer_norm(torch.tensor(cells), (4,))
        torch.testing.assert_close(y[0, :, row, column], expected)


def test_layer_norm_keeps_the_dtype_of_the_map():
    norm, x = LayerNorm2d(8), random_map(2, 8, 3, 4)
    torch.testing.assert_close(norm(x), layer_norm(norm, x))
    with torch.autocast('cpu', torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16
        assert norm(x).dtype == torch.float32


def test_layer_norm_sums_its_gradients_in_the_dtype_of_its_weight():
    norm = LayerNorm(4)
    x = 1 + torch.rand(20_000, 4).bfloat16()
    # Each of the 20,000 terms is 1, of which a sum in bf16 stops at 256.
    with torch.autocast('cpu', torch.bfloat16):
        norm(x).sum().backward()
    torch.testing.assert_close(norm.bias.grad, torch.full((4,), 2e4))


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(4000, 2, 3))
    kept = y[:, 0, 0]
    torch.testing.assert_close(kept[kept > 0].unique(), torch.tensor([4 / 3]))
    assert y.eq(kept[:, None, None]).all()
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(y) is y


@pytest.mark.parametrize(
    'block',
    [
        EVSSBlock(6, Double(), drop_path_rate=0.5),
        InvertedResidual(6, drop_path_rate=0.5),
    ],
    ids=['evss', 'inverted-residual'],
)
def test_a_dropped_sample_passes_unchanged(block):
    torch.manual_seed(0)
    x = random_map(64, 6, 2, 2)
    dropped = (block(x) == x).flatten(1).all(1)
    assert 0 < dropped.sum() < 64


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_illegal_drop_path_is_named(rate):
    with pytest.raises(ValueError, match=r'drop_prob must lie in \[0, 1\)'):
        DropPath(rate)


BLOCKS = {
    'evss': lambda: EVSSBlock(6, ES2D(6)),
    'ss2d': lambda: EVSSBlock(6, SS2D(6), fusion=False),
    'inverted-residual': lambda: InvertedResidual(6),
    'patch-merging': lambda: PatchMerging(6, 6),
    'norm': lambda: LayerNorm2d(6),
}


@pytest.mark.parametrize('name', BLOCKS)
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5)], ids=str)
def test_any_size_and_every_gradient(name, size):
    block, x = BLOCKS[name](), random_map(2, 6, *size).requires_grad_()
    y = block(x)
    if name != 'patch-merging':
        assert y.shape == x.shape
    parameters = [x, *block.parameters()]
    for gradient in torch.autograd.grad(y.square().sum(), parameters):
        assert gradient.isfinite().all()


@pytest.mark.parametrize('name', BLOCKS)
def test_memory_stays_channels_last(name):
    y = BLOCKS[name]()(random_map(2, 6, 5, 7))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('name', BLOCKS)
def test_memory_format_of_the_input_changes_no_value(name):
    block, x = BLOCKS[name]().eval(), random_map(2, 6, 5, 7)
    expected = block(x)
    torch.testing.assert_close(block(x.contiguous()), expected)


@pytest.mark.parametrize(
    'make',
    [
        lambda act: EVSSBlock(6, Double(), act=act),
        lambda act: InvertedResidual(6, act=act),
        lambda act: SS2D(6, act=act),
        lambda act: ES2D(6, act=act),
    ],
    ids=['evss', 'inverted-residual', 'ss2d', 'es2d'],
)
def test_activations_are_made_by_the_argument(make):
    block = make(nn.Hardswish)
    assert not {nn.GELU, nn.ReLU, nn.SiLU} & {type(m) for m in block.modules()}
    x, calls = random_map(2, 6, 3, 3), []
    acts = [m for m in block.modules() if isinstance(m, nn.Hardswish)]
    for act in acts:
        act.register_forward_hook(lambda m, *_: calls.append(m))
    block(x)
    assert set(calls) == set(acts)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (torch.zeros(1, 4, 8, 8), r'\(B, 3, H, W\), got \(1, 4, 8, 8\)'),
        (torch.zeros(3, 8, 8), r'\(B, 3, H, W\), got \(3, 8, 8\)'),
        (torch.zeros(1, 3, 3, 8), 'at least 4 pixels'),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 'uint8; normalise'),
        (torch.zeros(1, 3, 8, 8, device='meta'), 'on meta, the backbone on'),
        ([1, 2], 'got list'),
    ],
    ids=['channels', 'dimensions', 'size', 'dtype', 'device', 'type'],
)
def test_illegal_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbed(3, 8)(image)
