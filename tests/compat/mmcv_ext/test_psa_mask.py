"""mmcv's PSAMask against loops over its cells."""

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close


def reference(masks, psa_type, size):
    """The mask at (y, x) is laid around (y, x): what it covers there."""
    batch, _, height, width = masks.shape
    output = torch.zeros(batch, height, width, height, width).to(masks)
    half = [(side - 1) // 2 for side in size]
    for y in range(height):
        for x in range(width):
            for i in range(size[0]):
                for j in range(size[1]):
                    row, col = y + i - half[0], x + j - half[1]
                    if not (0 <= row < height and 0 <= col < width):
                        continue
                    value = masks[:, i * size[1] + j, y, x]
                    if psa_type == 'collect':
                        output[:, row, col, y, x] = value
                    else:
                        output[:, y, x, row, col] = value
    return output.flatten(1, 2)


@pytest.mark.parametrize('psa_type', ['collect', 'distribute'])
@pytest.mark.parametrize('size', [(5, 7), (3, 3), (1, 4), (2, 1)], ids=str)
def test_forward_and_backward(device, psa_type, size):
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(2, size[0] * size[1], 3, 4, generator=generator)
    masks = masks.double().to(device).requires_grad_()
    output = mmcv.ops.PSAMask(psa_type, size)(masks)
    expected = reference(masks, psa_type, size)
    assert_close(output, expected)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64)
    weight = weight.view(output.shape).to(device)
    (grad,) = torch.autograd.grad((output * weight).sum(), masks)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), masks)
    assert_close(grad, wanted)
