"""mmcv's deformable convolutions against a sum over every tap.

The reference is built of differentiable scalars in fp64, so its gradients
come from autograd.
"""

import math
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


def neighbours(place):
    low = math.floor(place.item())
    return low, low + 1


def sample(plane, y, x):
    """Bilinear value of planes (..., H, W) at a point, zero outside."""
    height, width = plane.shape[-2:]
    total = 0
    for row in neighbours(y):
        for col in neighbours(x):
            if 0 <= row < height and 0 <= col < width:
                share = (1 - (y - row).abs()) * (1 - (x - col).abs())
                total = total + share * plane[..., row, col]
    return total


def column(case, input, offset, mask, place):
    """The samples under the kernel of one image, (C, kH, kW)."""
    into, taps = case.channels[0], math.prod(case.kernel)
    per_group = into // case.deform_groups
    result = torch.zeros(into, *case.kernel, dtype=torch.float64)
    for group in range(case.deform_groups):
        channels = slice(group * per_group, (group + 1) * per_group)
        for tap in range(taps):
            at = divmod(tap, case.kernel[1])
            index = 2 * (group * taps + tap)
            y, x = (
                place[i] * case.stride[i]
                - case.padding[i]
                + at[i] * case.dilation[i]
                + offset[(index + i, *place)]
                for i in range(2)
            )
            value = sample(input[channels], y, x)
            if mask is not None:
                value = value * mask[(group * taps + tap, *place)]
            result[(channels, *at)] = value
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
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_forward_and_backward(device, case, has_mask, has_bias):
    used = [True, True, has_mask, True, has_bias]
    exact = [x.requires_grad_() for x in tensors(case)]
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
