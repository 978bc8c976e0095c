import pytest
import torch
import torch.nn.functional as F

from .cases import (
    DTYPES,
    assert_close_to_reference,
    normal,
    relative_error,
)

# Image, channels of the result, side of a patch.
CASES = {
    'stem': ((2, 3, 16, 20), 48, 4),
    'left-over': ((2, 3, 15, 11), 24, 4),
    'one-patch': ((3, 3, 4, 4), 96, 4),
    'one-pixel': ((1, 1, 3, 5), 7, 1),
    'many-numbers': ((1, 5, 17, 12), 33, 5),
    'widest': ((1, 3, 8, 8), 256, 4),
    'beyond': ((1, 3, 8, 8), 260, 4),
    'no-image': ((0, 3, 8, 8), 16, 4),
}


@pytest.fixture
def patches(device):
    from evmamba_mm.ops.triton import patch_embed

    return patch_embed


@pytest.fixture
def kernel(patches):
    def run(image, weight, bias, norm_weight, norm_bias):
        parameters = (weight, bias, norm_weight, norm_bias)
        return patches.patch_layer_norm(image, *parameters, 1e-5, image.dtype)

    return run


def reference(image, weight, bias, norm_weight, norm_bias):
    side = weight.shape[2]
    x = F.conv2d(image, weight, bias, side).permute(0, 2, 3, 1)
    wide = norm_weight.dtype
    y = F.layer_norm(x.to(wide), x.shape[-1:], norm_weight, norm_bias, 1e-5)
    return y.to(image.dtype)


def arguments_of(shape, channels, side, dtype=torch.float32, device='cpu'):
    def make(*sizes, seed):
        return normal(*sizes, device=device, seed=seed)

    size = shape[1] * side**2
    weight = make(channels, shape[1], side, side, seed=1) / size**0.5
    return dict(
        image=normal(*shape, dtype=dtype, device=device),
        weight=weight.to(dtype),
        bias=make(channels, seed=2).to(dtype),
        norm_weight=make(channels, seed=3),
        norm_bias=make(channels, seed=4),
    )


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('name', CASES)
def test_kernel(name, dtype, kernel, device):
    arguments = arguments_of(*CASES[name], dtype, device)
    assert_close_to_reference(
        kernel, reference, arguments, fixed=('image',), least=2e-5
    )
    y = kernel(**arguments)
    with torch.no_grad():
        assert torch.equal(kernel(**arguments), y)
    assert y.is_contiguous()


def test_image_with_strides(kernel, device):
    x = normal(2, 3, 13, 17, device=device)
    arguments = arguments_of((2, 3, 13, 17), 16, 4, device=device)
    for view in (
        x.to(memory_format=torch.channels_last),
        x.flip(1)[:, :, 1:, 2:],
        x.transpose(2, 3),
        x[:1].expand(2, -1, -1, -1),
    ):
        assert_close_to_reference(
            kernel,
            reference,
            arguments | {'image': view},
            fixed=('image',),
            least=2e-5,
        )


def test_without_a_bias(kernel, device):
    arguments = arguments_of((2, 3, 9, 8), 24, 4, device=device)
    assert_close_to_reference(
        kernel,
        reference,
        arguments | {'bias': None},
        fixed=('image',),
        least=2e-5,
    )


def test_gradient_with_strides(kernel, device):
    arguments = arguments_of((2, 3, 9, 8), 24, 4, device=device)
    assert_close_to_reference(
        lambda **maps: kernel(**maps).permute(0, 3, 1, 2),
        lambda **maps: reference(**maps).permute(0, 3, 1, 2),
        arguments,
        fixed=('image',),
        least=2e-5,
    )


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_image_with_a_gradient(dtype, kernel, device):
    arguments = arguments_of((1, 3, 9, 8), 8, 4, dtype, device)
    assert_close_to_reference(kernel, reference, arguments)


@pytest.mark.parametrize('channels', [24, 260])
@pytest.mark.parametrize('autocast', [False, True])
def test_narrow_result_of_wide_parameters(channels, autocast, patches, device):
    arguments = arguments_of((2, 3, 9, 8), channels, 4, device=device)
    image, *leaves = arguments.values()
    leaves = [x.requires_grad_() for x in leaves]
    with torch.autocast(device, torch.float16, enabled=autocast):
        y = patches.patch_layer_norm(image, *leaves, 1e-5, torch.bfloat16)
    assert y.dtype == torch.bfloat16
    expected = reference(image, *leaves)
    assert relative_error(y.detach(), expected.detach()) < 2e-2
    dy = normal(*y.shape, device=device)
    with torch.autocast(device, torch.float16, enabled=autocast):
        narrow = torch.autograd.grad(y, leaves, dy.to(y.dtype))
    wide = torch.autograd.grad(expected, leaves, dy)
    for actual, other in zip(narrow, wide, strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, other) < 3e-2
