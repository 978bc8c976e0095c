"""mmcv's RoIPool against loops, which follow mmcv's definition of a bin."""

import math

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close

# Image, then corners: inside, across an edge, outside, thin, no size.
ROIS = torch.tensor(
    [
        [0, 2, 1, 12, 9],
        [1, -6, -3, 5, 30],
        [1, 40, 40, 60, 55],
        [0, 3, 4, 4, 4],
        [1, 5, 5, 4, 4],
    ],
    dtype=torch.float64,
)
BATCH, CHANNELS, HEIGHT, WIDTH = 2, 3, 7, 9


def random_features():
    generator = torch.Generator().manual_seed(0)
    count = BATCH * CHANNELS * HEIGHT * WIDTH
    # Distinct whole numbers: one largest pixel, exact in every dtype but
    # bf16, which holds multiples of 2 up to here.
    values = torch.randperm(count, generator=generator).double() - count // 2
    return values.view(BATCH, CHANNELS, HEIGHT, WIDTH)


def bin_range(low, high, scale, count, index, limit):
    start, size = low * scale, (high + 1 - low) * scale
    if size <= 0:
        return range(0)
    first = math.floor(start + index * size / count)
    last = math.ceil(start + (index + 1) * size / count)
    return range(max(first, 0), min(last, limit))


def reference(features, rois, size, scale):
    """Outputs, and for each the place of its pixel or None."""
    output = torch.zeros(len(rois), CHANNELS, *size, dtype=torch.float64)
    places = {}
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        for i in range(size[0]):
            rows = bin_range(y1, y2, scale, size[0], i, HEIGHT)
            for j in range(size[1]):
                cols = bin_range(x1, x2, scale, size[1], j, WIDTH)
                pixels = [(row, col) for row in rows for col in cols]
                for c in range(CHANNELS if pixels else 0):
                    plane = features[int(image), c]
                    best = max(pixels, key=lambda at: plane[at])
                    output[r, c, i, j] = plane[best]
                    places[r, c, i, j] = (int(image), c, *best)
    return output, places


@pytest.mark.parametrize(
    'dtype',
    [torch.float64, torch.float32, torch.float16, torch.bfloat16],
    ids=str,
)
@pytest.mark.parametrize('scale', [1.0, 0.5])
# Powers of two: other bin edges that should be whole are rounded, on a GPU
# another way than on a CPU.
@pytest.mark.parametrize('size', [(1, 1), (2, 4), (8, 8)], ids=str)
def test_forward_and_backward(device, size, scale, dtype):
    features = random_features()
    if dtype == torch.bfloat16:
        features = features * 2
    leaf = features.to(device, dtype).requires_grad_()
    output = mmcv.ops.RoIPool(size, scale)(leaf, ROIS.to(device, dtype))
    expected, places = reference(leaf.detach().cpu(), ROIS, size, scale)
    assert output.dtype == dtype and output.device.type == device.type
    assert_close(output.detach().cpu().double(), expected, rtol=0, atol=0)
    grad = torch.arange(output.numel()).view(output.shape) % 5 - 2
    output.backward(grad.to(device, dtype))
    expected = torch.zeros_like(features)
    for at, place in places.items():
        expected[place] += grad[at]
    assert_close(leaf.grad.cpu().double(), expected, rtol=0, atol=0)


def test_no_boxes(device):
    features = random_features().to(device).requires_grad_()
    output = mmcv.ops.RoIPool((7, 5))(features, ROIS[:0].to(device))
    assert output.shape == (0, CHANNELS, 7, 5)
    output.sum().backward()
    assert features.grad.abs().sum() == 0
