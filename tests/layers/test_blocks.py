import pytest
import torch
from torch import nn

from evmamba_mm.layers import (
    ES2D,
    ConvBranch,
    DropPath,
    EVSSBlock,
    InvertedResidual,
    PatchEmbed,
    PatchMerging,
    SqueezeExcite,
)


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def test_fusion_shares_one_channel_attention():
    block = EVSSBlock(8, Double()).eval()
    x = torch.randn(2, 5, 6, 8)
    n = block.norm(x)
    expected = x + block.se(2 * n) + block.se(block.conv_branch(n))
    torch.testing.assert_close(block(x), expected)
    assert sum(isinstance(m, SqueezeExcite) for m in block.modules()) == 1


def test_without_fusion_there_is_only_the_mixer():
    block = EVSSBlock(8, Double(), fusion=False)
    x = torch.randn(2, 5, 6, 8)
    torch.testing.assert_close(block(x), x + 2 * block.norm(x))
    names = {n.split('.')[0] for n, _ in block.named_parameters()}
    assert names == {'norm'}


@pytest.mark.parametrize(
    'block',
    [EVSSBlock(6, ES2D(6)), InvertedResidual(6), ConvBranch(6)],
    ids=['evss', 'inverted-residual', 'conv-branch'],
)
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5)], ids=str)
def test_any_size_and_every_gradient(block, size):
    x = torch.randn(2, *size, 6, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    parameters = [x, *block.parameters()]
    for gradient in torch.autograd.grad(y.square().sum(), parameters):
        assert gradient.isfinite().all()


def gradients(block, x):
    # The same samples are dropped.
    torch.manual_seed(0)
    y = block(x)
    dy = torch.linspace(-1, 2, y.numel(), device=y.device).view_as(y)
    inputs = [x, *block.parameters()]
    return [y, *torch.autograd.grad(y, inputs, dy)]


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5)], ids=str)
def test_gates_give_the_same_gradients_in_any_way(size, monkeypatch):
    pytest.importorskip('triton', reason='triton is not installed')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    block = EVSSBlock(24, ES2D(24), drop_path_rate=0.3).to(device)
    x = torch.randn(4, *size, 24, device=device, requires_grad=True)
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'torch')
    expected = gradients(block, x)
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    by_one_op = gradients(block, x)
    block.se.channel_select.register_forward_hook(lambda *_: None)
    by_calls = gradients(block, x)
    for values in (by_one_op, by_calls):
        for value, other in zip(values, expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def test_patch_merging_order_and_padding():
    merge = PatchMerging(1, 4)
    nn.init.eye_(merge.reduction.weight)
    x = torch.arange(1.0, 10.0).view(1, 3, 3, 1)
    y = merge(x)
    assert y.shape == (1, 2, 2, 4)
    for place, cells in (
        ((0, 0), [1.0, 4, 2, 5]),
        ((0, 1), [3.0, 6, 0, 0]),
        ((1, 1), [9.0, 0, 0, 0]),
    ):
        expected = nn.functional.layer_norm(torch.tensor(cells), (4,))
        torch.testing.assert_close(y[0][place], expected)


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(4000, 2, 3))
    kept = y[:, 0, 0]
    torch.testing.assert_close(kept[kept > 0].unique(), torch.tensor([4 / 3]))
    assert y.eq(kept[:, None, None]).all()
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(y) is y


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_illegal_drop_path_is_named(rate):
    with pytest.raises(ValueError, match=r'drop_prob must lie in \[0, 1\)'):
        DropPath(rate)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (torch.zeros(1, 4, 8, 8), r'\(B, 3, H, W\), got \(1, 4, 8, 8\)'),
        (torch.zeros(3, 8, 8), r'\(B, 3, H, W\), got \(3, 8, 8\)'),
        (torch.zeros(1, 3, 3, 8), 'at least 4 pixels'),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 'uint8; normalise'),
        (torch.zeros(1, 3, 8, 8, device='meta'), 'on meta, the backbone on'),
    ],
    ids=['channels', 'dimensions', 'size', 'dtype', 'device'],
)
def test_illegal_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbed(3, 8)(image)


def test_conv_branch_by_kernels(monkeypatch):
    pytest.importorskip('triton', reason='triton is not installed')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    branch = ConvBranch(12).to(device)
    x = torch.randn(2, 5, 3, 12, device=device, requires_grad=True)
    leaves, found = [x, *branch.parameters()], []
    for backend in ('triton', 'torch'):
        monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', backend)
        found.append(torch.autograd.grad(branch(x).square().sum(), leaves))
    for kernel, twin in zip(*found, strict=True):
        # The bias before the norm has no gradient but rounding.
        torch.testing.assert_close(kernel, twin, rtol=1e-4, atol=1e-4)
