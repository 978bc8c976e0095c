"""mmcv's deformable convolutions against a sum over every tap.

The reference is built of differentiable scalars in fp64, so its gradients
come from autograd. Where the derivative jumps it follows mmcv: the one on the
right between pixels, none on -1 and on the size.
"""

import itertools
import math
import random
from dataclasses import dataclass

import mmcv.ops
import pytest
import torch
from torch.testing import assert_close

BATCH = 2


@dataclass(frozen=True)
class Case:
    """A geometry; pairs are (height, width)."""

    channels: tuple = (4, 4)
    image: tuple = (5, 6)
    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (1, 1)
    dilation: tuple = (1, 1)
    groups: int = 1
    deform_groups: int = 1

    @property
    def output(self):
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                self.image,
                self.padding,
                self.dilation,
                self.kernel,
                self.stride,
                strict=True,
            )
        )

    def undeformed(self, tap, place):
        """Where a tap samples without an offset, (y, x)."""
        return tuple(
            i * s - p + t * d
            for i, s, p, t, d in zip(
                place,
                self.stride,
                self.padding,
                divmod(tap, self.kernel[1]),
                self.dilation,
                strict=True,
            )
        )


CASES = {
    'plain': Case(),
    'strided-groups': Case(stride=(2, 1), groups=2, deform_groups=2),
    'dilated-oblong': Case(
        channels=(2, 3),
        image=(5, 7),
        kernel=(2, 3),
        padding=(0, 2),
        dilation=(2, 1),
    ),
    'strided-dilated-groups': Case(
        channels=(4, 2),
        image=(6, 5),
        kernel=(2, 3),
        stride=(2, 3),
        padding=(1, 3),
        dilation=(3, 2),
        groups=2,
        deform_groups=2,
    ),
}


def tensors(case):
    """Input, offset, mask, weight, bias in fp64."""
    generator = torch.Generator().manual_seed(0)
    into, out = case.channels
    taps = math.prod(case.kernel) * case.deform_groups
    shapes = (
        (BATCH, into, *case.image),
        (BATCH, 2 * taps, *case.output),
        (BATCH, taps, *case.output),
        (out, into // case.groups, *case.kernel),
        (out,),
    )
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in shapes
    ]


def border_offset(case):
    """Offsets that put samples on the borders, beside them and anywhere."""
    generator = random.Random(0)
    offset = tensors(case)[1]
    # A view: (B, deformable groups, taps, y and x, oH, oW).
    pairs = offset.unflatten(1, (-1, math.prod(case.kernel), 2))
    for index in itertools.product(*map(range, pairs.shape)):
        _, _, tap, axis, *place = index
        size = case.image[axis]
        near = (-1, 0, size - 1, size)
        at = generator.choice(
            (
                *near,
                generator.choice(near) + generator.choice((-1e-6, 1e-6)),
                generator.uniform(-1, 0),
                generator.uniform(-3, size + 2),
            )
        )
        pairs[index] = at - case.undeformed(tap, place)[axis]
    return offset


def neighbours(at, size):
    """The pixels next to a coordinate, and their shares."""
    low = math.floor(at.item())
    both = (low, low + 1 - at), (low + 1, at - low)
    return [(pixel, share) for pixel, share in both if 0 <= pixel < size]


def sample(plane, y, x):
    """Bilinear value of planes (..., H, W) at a point, zero outside."""
    height, width = plane.shape[-2:]
    if not (-1 < y < height and -1 < x < width):
        return 0
    return sum(
        row_share * col_share * plane[..., row, col]
        for row, row_share in neighbours(y, height)
        for col, col_share in neighbours(x, width)
    )


def column(case, input, offset, mask, place):
    """The samples under the kernel of one image, (C, kH, kW)."""
    into, taps = case.channels[0], math.prod(case.kernel)
    per_group = into // case.deform_groups
    result = torch.zeros(into, *case.kernel, dtype=torch.float64)
    for group in range(case.deform_groups):
        channels = slice(group * per_group, (group + 1) * per_group)
        for tap in range(taps):
            index = 2 * (group * taps + tap)
            y, x = (
                start + offset[(index + i, *place)]
                for i, start in enumerate(case.undeformed(tap, place))
            )
            value = sample(input[channels], y, x)
            if mask is not None:
                value = value * mask[(group * taps + tap, *place)]
            result[(channels, *divmod(tap, case.kernel[1]))] = value
    return result


def reference(case, input, offset, mask, weight, bias):
    out = case.channels[1]
    output = torch.zeros(BATCH, out, *case.output, dtype=torch.float64)
    weight = weight.unflatten(0, (case.groups, -1))
    for image in range(BATCH):
        masks = None if mask is None else mask[image]
        for i in range(case.output[0]):
            for j in range(case.output[1]):
                taps = column(case, input[image], offset[image], masks, (i, j))
                taps = taps.unflatten(0, (case.groups, -1))
                value = torch.einsum('gochw,gchw->go', weight, taps)
                output[image, :, i, j] = value.flatten()
    return output if bias is None else output + bias[:, None, None]


def geometry(case):
    return case.stride, case.padding, case.dilation


def run(case, leaves, has_mask, has_bias):
    input, offset, mask, weight, bias = leaves
    groups = (case.groups, case.deform_groups)
    if not has_mask:
        return mmcv.ops.deform_conv2d(
            input, offset, weight, *geometry(case), *groups
        )
    return mmcv.ops.modulated_deform_conv2d(
        input,
        offset,
        mask,
        weight,
        bias if has_bias else None,
        *geometry(case),
        *groups,
    )


def grad_of(output):
    count = output.numel()
    return torch.linspace(-1, 1, count, dtype=torch.float64).view(output.shape)


@pytest.mark.parametrize(
    'has_mask, has_bias',
    [(False, False), (True, False), (True, True)],
    ids=['v1', 'v2', 'v2-bias'],
)
@pytest.mark.parametrize('border', [False, True], ids=['random', 'border'])
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_forward_and_backward(device, case, border, has_mask, has_bias):
    used = [True, True, has_mask, True, has_bias]
    exact = tensors(case)
    if border:
        exact[1] = border_offset(case)
    for leaf in exact:
        leaf.requires_grad_()
    expected = reference(
        case, *(x if on else None for x, on in zip(exact, used, strict=True))
    )
    expected.backward(grad_of(expected))
    leaves = [x.detach().to(device).requires_grad_() for x in exact]
    output = run(case, leaves, has_mask, has_bias)
    output.backward(grad_of(output).to(device))
    assert output.device.type == device.type
    assert_close(output.detach().cpu(), expected.detach())
    for name, leaf, wanted, on in zip(
        ('input', 'offset', 'mask', 'weight', 'bias'),
        leaves,
        exact,
        used,
        strict=True,
    ):
        if on:
            assert_close(leaf.grad.cpu(), wanted.grad, msg=name)


@pytest.mark.parametrize(
    'dtype, tolerance',
    [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 0.15)],
    ids=['float32', 'float16', 'bfloat16'],
)
@pytest.mark.parametrize('has_mask', [False, True], ids=['v1', 'v2'])
def test_precision(device, has_mask, dtype, tolerance):
    case = CASES['plain']
    # Offsets in eighths are the same in each dtype; the kinks between pixels
    # are then met by all or by none.
    rounded = [(x * 8).round() / 8 for x in tensors(case)]
    results = []
    for kind in (torch.float64, dtype):
        leaves = [x.to(device, kind, copy=True) for x in rounded]
        for leaf in leaves:
            leaf.requires_grad_()
        output = run(case, leaves, has_mask, has_mask)
        output.backward(grad_of(output).to(device, kind))
        assert output.dtype == leaves[0].grad.dtype == kind
        grads = [x.grad for x in leaves if x.grad is not None]
        results.append([output.detach(), *grads])
    for expected, found in zip(*results, strict=True):
        assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_layer_of_mmcv_learns(device):
    layer = mmcv.ops.ModulatedDeformConv2dPack(4, 3, 3, padding=1).to(device)
    layer(torch.rand(2, 4, 5, 7, device=device)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize(
    'name, expected',
    [
        ('DeformConv2dPack', [-6.0, -3.0] * 4),
        # mmcv's published numbers; a mask of 0.5 halves the offsets' part.
        ('ModulatedDeformConv2dPack', [-3.0, -1.5] * 4 + [4.5] * 4),
    ],
)
def test_offset_gradient_of_first_step(device, name, expected):
    layer = getattr(mmcv.ops, name)(1, 1, 2, padding=1, bias=False)
    torch.nn.init.ones_(layer.weight)
    rows = torch.tensor([1.0, 2.0, 3.0], device=device).expand(1, 1, 3, 3)
    layer.to(device)(rows).sum().backward()
    grad = layer.conv_offset.bias.grad.cpu()
    assert_close(grad, torch.tensor(expected))
