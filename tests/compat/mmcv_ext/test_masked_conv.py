"""mmcv's masked convolution against a whole one."""

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close


@pytest.mark.parametrize('share', [0.0, 0.4, 1.0])
@pytest.mark.parametrize('kernel', [(3, 3), (1, 1), (5, 3)], ids=str)
def test_masked_convolution(device, kernel, share):
    torch.manual_seed(0)
    padding = tuple(side // 2 for side in kernel)
    layer = mmcv.ops.MaskedConv2d(3, 4, kernel, padding=padding).to(device)
    image = torch.randn(1, 3, 6, 5, device=device)
    mask = (torch.rand(1, 6, 5, device=device) < share).float()
    with torch.no_grad():
        output = layer(image, mask)
        # A place that is masked out is 0, bias and all.
        expected = layer(image) * mask[:, None]
    assert_close(output, expected)
