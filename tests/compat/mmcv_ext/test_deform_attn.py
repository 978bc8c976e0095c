"""mmcv's multi-scale deformable attention against loops over each point.

The reference is built of differentiable scalars in fp64, so its gradients
come from autograd. Where the derivative jumps it follows mmcv: none on -1
and on the size.
"""

import itertools
import math
import random

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch.testing import assert_close

BATCH, HEADS, CHANNELS, QUERIES, POINTS = 2, 2, 3, 4, 2
SHAPES = ((3, 5), (2, 1))
STARTS = (0, 15)


def tensors():
    """Values, locations (some outside of the image), weights in fp64."""
    generator = torch.Generator().manual_seed(0)
    pixels = sum(height * width for height, width in SHAPES)
    points = (BATCH, QUERIES, HEADS, len(SHAPES), POINTS)

    def uniform(shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return [
        uniform((BATCH, pixels, HEADS, CHANNELS)) - 0.5,
        uniform((*points, 2)) * 1.4 - 0.2,
        uniform(points),
    ]


def border_tensors():
    """The same, with samples on the borders, beside them and anywhere."""
    generator = random.Random(0)
    value, locations, weights = tensors()
    on_border = 0
    for index in itertools.product(*map(range, locations.shape)):
        # Heights and widths, but x and y.
        size = SHAPES[index[3]][1 - index[-1]]
        border = generator.choice((-1, size))
        at = generator.choice(
            (
                border,
                border + generator.choice((-1e-6, 1e-6)),
                generator.uniform(-1, 0),
                generator.uniform(-3, size + 2),
            )
        )
        locations[index] = (at + 0.5) / size
        if at == border:
            assert locations[index] * size - 0.5 == border
            on_border += 1
    assert on_border
    return value, locations, weights


def neighbours(place):
    low = math.floor(place.item())
    return low, low + 1


def sample(plane, y, x):
    """Bilinear value of (H, W, D) at a point, zero outside."""
    total = torch.zeros(CHANNELS, dtype=torch.float64)
    if not (-1 < y < plane.shape[0] and -1 < x < plane.shape[1]):
        return total
    for row in neighbours(y):
        for col in neighbours(x):
            if 0 <= row < plane.shape[0] and 0 <= col < plane.shape[1]:
                share = (1 - (y - row).abs()) * (1 - (x - col).abs())
                total = total + share * plane[row, col]
    return total


def attend(value, locations, weights, batch, query, head):
    total = torch.zeros(CHANNELS, dtype=torch.float64)
    for level, (height, width) in enumerate(SHAPES):
        pixels = slice(STARTS[level], STARTS[level] + height * width)
        plane = value[batch, pixels, head].view(height, width, CHANNELS)
        for point in range(POINTS):
            x, y = locations[batch, query, head, level, point]
            found = sample(plane, y * height - 0.5, x * width - 0.5)
            total = total + weights[batch, query, head, level, point] * found
    return total


def reference(value, locations, weights):
    rows = [
        attend(value, locations, weights, batch, query, head)
        for batch in range(BATCH)
        for query in range(QUERIES)
        for head in range(HEADS)
    ]
    return torch.stack(rows).view(BATCH, QUERIES, HEADS * CHANNELS)


def run(value, locations, weights):
    shapes = torch.tensor(SHAPES, device=value.device)
    starts = torch.tensor(STARTS, device=value.device)
    return MultiScaleDeformableAttnFunction.apply(
        value, shapes, starts, locations, weights, 64
    )


def check(tensors, device, dtype, tolerance):
    # Rounded first: a location that moves by itself may cross a pixel.
    rounded = [x.to(dtype) for x in tensors]
    exact = [x.to(torch.float64, copy=True) for x in rounded]
    leaves = [x.to(device, copy=True) for x in rounded]
    for tensor in exact + leaves:
        tensor.requires_grad_()
    expected = reference(*exact)
    grad = torch.linspace(-1, 1, expected.numel()).double().view_as(expected)
    expected.backward(grad)
    output = run(*leaves)
    output.backward(grad.to(device, dtype))
    assert output.dtype == dtype and output.device.type == device.type
    bounds = dict(rtol=tolerance, atol=tolerance)
    assert_close(output.detach().cpu().double(), expected.detach(), **bounds)
    for name, leaf, wanted in zip(
        ('value', 'locations', 'weights'), leaves, exact, strict=True
    ):
        assert leaf.grad.dtype == dtype
        assert_close(leaf.grad.cpu().double(), wanted.grad, **bounds, msg=name)


@pytest.mark.parametrize(
    'dtype, tolerance',
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.float16, 0.02),
        (torch.bfloat16, 0.15),
    ],
    ids=['float64', 'float32', 'float16', 'bfloat16'],
)
def test_forward_and_backward(device, dtype, tolerance):
    check(tensors(), device, dtype, tolerance)


def test_borders(device):
    check(border_tensors(), device, torch.float64, 1e-12)
