import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops import patch_layer_norm

from ..scan_cases import relative_error
from .kernel_cases import (
    DTYPES,
    assert_inference_is_right,
    assert_kernel_is_right,
    normal,
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
    'no-entry': ((0, 3, 8, 8), 16, 4),
}


def arguments(shape, channels, side, dtype=torch.float64, device='cpu'):
    parameters = torch.promote_types(dtype, torch.float32)

    def make(*sizes, seed):
        return normal(*sizes, dtype=parameters, device=device, seed=seed)

    size = shape[1] * side**2
    weight = make(channels, shape[1], side, side, seed=1) / size**0.5
    return dict(
        image=normal(*shape, dtype=dtype, device=device),
        weight=weight.to(dtype),
        bias=make(channels, seed=2).to(dtype),
        norm_weight=make(channels, seed=3),
        norm_bias=make(channels, seed=4),
    )


assert_near = partial(assert_inference_is_right, patch_layer_norm, least=2e-5)


def test_twin_follows_the_definition():
    values = arguments((2, 3, 9, 8), 5, 4)
    image, weight, bias, scale, shift = values.values()
    expected = F.layer_norm(
        F.conv2d(image, weight, bias, stride=4).permute(0, 2, 3, 1),
        (5,),
        scale,
        shift,
    )
    torch.testing.assert_close(patch_layer_norm(**values), expected)


def test_twin_passes_gradcheck():
    leaves = [
        x.requires_grad_() for x in arguments((1, 2, 5, 4), 3, 2).values()
    ]
    assert torch.autograd.gradcheck(patch_layer_norm, leaves)


@torch.no_grad()
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ('shape', 'channels', 'side'), CASES.values(), ids=CASES
)
def test_kernel(shape, channels, side, dtype, device):
    values = arguments(shape, channels, side, dtype, device)
    y = patch_layer_norm(**values, backend='triton')
    if y.numel():
        assert_near(y, values, dtype)
    else:
        assert y.shape == (0, 2, 2, 16)


@torch.no_grad()
def test_image_with_strides(device):
    x = normal(2, 3, 13, 17, dtype=torch.float32, device=device)
    values = arguments((2, 3, 13, 17), 16, 4, torch.float32, device)
    for view in (
        x.to(memory_format=torch.channels_last),
        x.flip(1)[:, :, 1:, 2:],
        x.transpose(2, 3),
        x[:1].expand(2, -1, -1, -1),
    ):
        given = values | {'image': view}
        y = patch_layer_norm(**given, backend='triton')
        assert_near(y, given, torch.float32)


@torch.no_grad()
def test_every_value_is_written(device, monkeypatch):
    values = arguments((2, 3, 13, 18), 33, 4, torch.float32, device)
    expected = patch_layer_norm(**values, backend='triton')
    empty = torch.empty
    monkeypatch.setattr(
        torch, 'empty', lambda *a, **k: empty(*a, **k).fill_(torch.nan)
    )
    assert torch.equal(patch_layer_norm(**values, backend='triton'), expected)


@torch.no_grad()
def test_autocast_narrows_the_result(device):
    values = arguments((1, 3, 8, 8), 16, 4, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        y = patch_layer_norm(**values, backend='triton')
        values['weight'] = values['weight'].bfloat16()
        ready = patch_layer_norm(**values, backend='triton')
    assert y.dtype == torch.bfloat16
    exact = patch_layer_norm(**{k: x.double() for k, x in values.items()})
    for found in (y, ready):
        assert relative_error(found, exact) < 2e-2


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('name', ['stem', 'left-over', 'many-numbers'])
def test_gradients_of_the_parameters(name, dtype, device):
    values = arguments(*CASES[name], dtype, device)
    assert_kernel_is_right(patch_layer_norm, values, dtype, fixed=('image',))


def test_an_image_with_a_gradient(device):
    values = arguments((1, 3, 9, 8), 8, 4, torch.float32, device)
    assert_kernel_is_right(patch_layer_norm, values, torch.float32)


def test_gradients_under_autocast(device):
    values = arguments((2, 3, 9, 8), 24, 4, torch.float32, device)
    found = {}
    for name, context in (
        ('narrow', torch.autocast(device, torch.bfloat16)),
        ('wide', contextlib.nullcontext()),
    ):
        image, *leaves = (x.detach() for x in values.values())
        leaves = [x.requires_grad_() for x in leaves]
        with context:
            y = patch_layer_norm(image, *leaves, backend='triton')
        dy = normal(*y.shape, dtype=torch.float32, device=device).to(y.dtype)
        found[name] = torch.autograd.grad(y, leaves, dy)
    for narrow, wide in zip(*found.values(), strict=True):
        assert narrow.dtype == wide.dtype
        assert relative_error(narrow, wide) < 3e-2


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('image', (3, 8, 8)),
        ('image', (1, 2, 8, 8)),
        ('image', (1, 3, 3, 8)),
        ('weight', (5, 3, 4, 2)),
        ('bias', (4,)),
    ],
)
def test_shapes_that_do_not_fit(name, shape):
    values = arguments((1, 3, 8, 8), 5, 4) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match='image, weight and bias'):
        patch_layer_norm(**values)


@torch.no_grad()
@pytest.mark.parametrize('name', ['norm_weight', 'norm_bias'])
def test_norms_that_do_not_fit(name, device):
    values = arguments((1, 3, 8, 8), 5, 4, torch.float32, device)
    for backend in ('torch', 'triton'):
        with pytest.raises(ValueError, match='weight|bias'):
            patch_layer_norm(
                **values | {name: torch.zeros(4, device=device)},
                backend=backend,
            )
