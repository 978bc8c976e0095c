import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evmamba_mm.layers import InvertedResidual

from .equations import (
    batch_norm,
    conv_squeeze_excite,
    random_map,
    randomised,
)


def equation(block, x):
    (pw, norm_pw, _), (dw, norm_dw, _) = block.conv_pw, block.conv_dw
    pw2, norm_pw2 = block.conv_pw2
    y = F.relu(batch_norm(norm_pw, F.conv2d(x, pw.weight)))
    y = F.conv2d(y, dw.weight, padding=1, groups=y.shape[1])
    y = conv_squeeze_excite(block.se, F.relu(batch_norm(norm_dw, y)))
    return x + batch_norm(norm_pw2, F.conv2d(y, pw2.weight))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('expand_ratio', [1, 4])
def test_equation(expand_ratio, training):
    block = randomised(InvertedResidual(8, expand_ratio)).train(training)
    x = random_map(2, 8, 5, 6)
    expected = equation(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('squeeze_ratio', 'hidden'), [(0.125, 4), (0.25, 8), (0.01, 1)]
)
def test_width_of_the_channel_attention(squeeze_ratio, hidden):
    block = InvertedResidual(8, squeeze_ratio=squeeze_ratio)
    assert block.se.conv_reduce.out_channels == hidden


def test_each_batch_is_counted_once():
    block = InvertedResidual(8)
    block(random_map(2, 8, 5, 6))
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(m.num_batches_tracked == 1 for m in norms)
    assert all(m.running_mean.any() for m in norms)
