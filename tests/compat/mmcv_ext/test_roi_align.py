"""mmcv's RoIAlign against a matrix of weights, built point by point."""

import itertools
import math

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close

# Image, then corners in pixels of the input image: inside, across an edge,
# outside, thinner than a bin, without a size.
ROIS = torch.tensor(
    [
        [0, 2.3, 1.1, 12.7, 9.9],
        [1, -6.2, -3.1, 5.5, 30.4],
        [1, 40.0, 40.0, 60.0, 55.0],
        [0, 3.2, 4.1, 3.9, 4.3],
        [1, 5.0, 5.0, 5.0, 5.0],
    ],
    dtype=torch.float64,
)
BATCH, CHANNELS, HEIGHT, WIDTH = 2, 3, 7, 9


def point_weights(y, x):
    """Weights of a (HEIGHT, WIDTH) plane for one sample point."""
    weights = torch.zeros(HEIGHT, WIDTH, dtype=torch.float64)
    if not (-1 <= y <= HEIGHT and -1 <= x <= WIDTH):
        return weights
    y, x = (
        min(max(value, 0), limit - 1)
        for value, limit in ((y, HEIGHT), (x, WIDTH))
    )
    for row in range(HEIGHT):
        for col in range(WIDTH):
            weights[row, col] = max(1 - abs(y - row), 0) * max(
                1 - abs(x - col), 0
            )
    return weights


def bin_weights(roi, size, place, scale, ratio, aligned):
    shift = 0.5 if aligned else 0
    x1, y1, x2, y2 = (value * scale - shift for value in roi[1:])
    extents = [y2 - y1, x2 - x1]
    if not aligned:
        extents = [max(extent, 1) for extent in extents]
    steps = [extent / n for extent, n in zip(extents, size, strict=True)]
    grid = [ratio or math.ceil(step) for step in steps]
    weights = torch.zeros(HEIGHT, WIDTH, dtype=torch.float64)
    for i in range(grid[0]):
        for j in range(grid[1]):
            y = y1 + (place[0] + (i + 0.5) / grid[0]) * steps[0]
            x = x1 + (place[1] + (j + 0.5) / grid[1]) * steps[1]
            weights += point_weights(y, x)
    return weights / max(grid[0] * grid[1], 1)


def reference_weights(rois, size, scale, ratio, aligned):
    """(R, h, w, BATCH, HEIGHT, WIDTH): each output's share of each pixel."""
    weights = torch.zeros(
        len(rois), *size, BATCH, HEIGHT, WIDTH, dtype=torch.float64
    )
    for index, roi in enumerate(rois.tolist()):
        for i in range(size[0]):
            for j in range(size[1]):
                weights[index, i, j, int(roi[0])] = bin_weights(
                    roi, size, (i, j), scale, ratio, aligned
                )
    return weights


def random_features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, CHANNELS, HEIGHT, WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'legacy'])
@pytest.mark.parametrize('ratio', [0, 2], ids=['dense', 'ratio2'])
@pytest.mark.parametrize('scale', [1.0, 0.25])
@pytest.mark.parametrize('size', [(1, 1), (2, 3)], ids=str)
def test_forward_and_backward(device, size, scale, ratio, aligned, dtype):
    features = random_features().to(device, dtype).requires_grad_()
    align = mmcv.ops.RoIAlign(size, scale, ratio, aligned=aligned)
    output = align(features, ROIS.to(device, dtype))
    weights = reference_weights(ROIS, size, scale, ratio, aligned)
    expected = torch.einsum('rijnhw,nchw->rcij', weights, random_features())
    tolerance = dict(rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-5)
    assert output.dtype == dtype and output.device.type == device.type
    assert_close(output.detach().cpu().double(), expected, **tolerance)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64)
    grad = grad.view(output.shape)
    output.backward(grad.to(device, dtype))
    expected = torch.einsum('rijnhw,rcij->nchw', weights, grad)
    assert_close(features.grad.cpu().double(), expected, **tolerance)


def test_no_boxes(device):
    features = random_features().to(device).requires_grad_()
    output = mmcv.ops.RoIAlign((7, 5))(features, ROIS[:0].to(device))
    assert output.shape == (0, CHANNELS, 7, 5)
    output.sum().backward()
    assert features.grad.abs().sum() == 0


def test_memory_layout_does_not_matter(device):
    features = random_features().to(device)
    rois = ROIS.to(device)
    align = mmcv.ops.RoIAlign((2, 3))
    channels_last = features.to(memory_format=torch.channels_last)
    channels_last.requires_grad_()
    output = align(channels_last, rois)
    assert_close(output, align(features, rois))
    output.transpose(2, 3).square().sum().backward()
    features.requires_grad_()
    align(features, rois).square().sum().backward()
    assert_close(channels_last.grad, features.grad, check_stride=False)


def test_gradcheck(device):
    features = random_features()[:, :1].to(device).requires_grad_()
    rois = ROIS[:2].to(device)
    align = mmcv.ops.RoIAlign((2, 2), 0.5)
    torch.autograd.gradcheck(
        lambda x: align(x, rois), features, nondet_tol=1e-12
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(device, dtype):
    features = random_features().to(device, dtype)
    rois = ROIS.to(device, dtype)
    align = mmcv.ops.RoIAlign((2, 3))
    half = features.clone().requires_grad_()
    full = features.float().requires_grad_()
    output, expected = align(half, rois), align(full, rois.float())
    output.sum().backward()
    expected.sum().backward()
    assert output.dtype == half.grad.dtype == dtype
    # Only the results are rounded.
    assert_close(output, expected.to(dtype), rtol=0, atol=0)
    assert_close(half.grad, full.grad.to(dtype), rtol=0.01, atol=0.01)


def test_autocast(device):
    features = random_features().to(device).float().requires_grad_()
    weight = torch.eye(CHANNELS, device=device)[..., None, None]
    weight.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        mixed = torch.nn.functional.conv2d(features, weight)
        output = mmcv.ops.RoIAlign((2, 3))(mixed, ROIS.to(device).float())
    assert mixed.dtype == output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert features.grad.abs().sum() > 0
    assert weight.grad.isfinite().all()


def test_torchvision_alone_has_no_bfloat16_backward(device):
    """The fault that running in fp32 mends; it can go with this test."""
    from torchvision.ops import roi_align

    features = random_features().to(device).float().requires_grad_()
    try:
        output = roi_align(
            features.bfloat16(), ROIS.to(device, torch.bfloat16), (2, 3)
        )
        output.float().sum().backward()
    except RuntimeError as error:
        assert "not implemented for 'BFloat16'" in str(error)
    else:
        pytest.skip('this torchvision has the kernels for bfloat16')


def largest_points(features, roi, size, scale, ratio, aligned):
    """Output (C, h, w) of one box: the largest of each bin's points."""
    shift = 0.5 if aligned else 0
    x1, y1, x2, y2 = (value * scale - shift for value in roi[1:].tolist())
    extents = [y2 - y1, x2 - x1]
    if not aligned:
        extents = [max(extent, 1) for extent in extents]
    steps = [extent / n for extent, n in zip(extents, size, strict=True)]
    grid = [ratio or math.ceil(step) for step in steps]
    output = features.new_zeros(CHANNELS, *size)
    for place in itertools.product(*map(range, size)):
        values = [
            torch.einsum(
                'hw,chw->c',
                point_weights(
                    y1 + (place[0] + (i + 0.5) / grid[0]) * steps[0],
                    x1 + (place[1] + (j + 0.5) / grid[1]) * steps[1],
                ),
                features[int(roi[0])],
            )
            for i, j in itertools.product(*map(range, grid))
        ]
        if values:
            output[(slice(None), *place)] = torch.stack(values).amax(0)
    return output


@pytest.mark.parametrize('aligned', [True, False], ids=['aligned', 'legacy'])
@pytest.mark.parametrize('ratio', [0, 2], ids=['dense', 'ratio2'])
@pytest.mark.parametrize('scale', [1.0, 0.25])
@pytest.mark.parametrize('size', [(1, 1), (2, 3)], ids=str)
def test_largest_point(device, size, scale, ratio, aligned):
    exact = random_features().requires_grad_()
    expected = torch.stack(
        [
            largest_points(exact, roi, size, scale, ratio, aligned)
            for roi in ROIS
        ]
    )
    features = random_features().to(device).requires_grad_()
    align = mmcv.ops.RoIAlign(
        size, scale, ratio, pool_mode='max', aligned=aligned
    )
    output = align(features, ROIS.to(device))
    assert_close(output.detach().cpu(), expected.detach())
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64)
    grad = grad.view(output.shape)
    # Equal points, outside of the image or in a plane, share a maximum.
    inside = expected.detach() != 0
    expected.backward(grad * inside)
    output.backward((grad * inside).to(device))
    assert_close(features.grad.cpu(), exact.grad)


def test_largest_point_of_no_boxes(device):
    features = random_features().to(device).requires_grad_()
    align = mmcv.ops.RoIAlign((7, 5), pool_mode='max')
    output = align(features, ROIS[:0].to(device))
    assert output.shape == (0, CHANNELS, 7, 5)
    output.sum().backward()
    assert features.grad.abs().sum() == 0
