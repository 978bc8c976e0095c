import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evmamba_mm.layers import ES2D, SS2D, ScanMixer

from .equations import random_map, randomised


class Cumulative(ScanMixer):
    """A scan that is easily written down."""

    def __init__(self, channels, act=nn.SiLU):
        super().__init__(channels, parameter_sets=1, act=act)

    def scan(self, u):
        return u.cumsum(1)


def equation(mixer, x, act):
    """For one image (C, H, W): Eq. 5 pixel by pixel, then along the rows."""
    u, gate = (x.movedim(0, -1) @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    conv, norm = mixer.conv2d, mixer.out_norm
    u = F.conv2d(
        u.movedim(-1, 0)[None],
        conv.weight,
        conv.bias,
        padding=1,
        groups=u.shape[-1],
    )[0]
    y = act(u).cumsum(1).movedim(0, -1)
    y = (y - y.mean(-1, keepdim=True)) / (
        y.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    y = (y * norm.weight + norm.bias) * act(gate)
    return (y @ mixer.out_proj.weight.T).movedim(-1, 0)


@pytest.mark.parametrize('act', [nn.SiLU, nn.GELU])
def test_equation_around_the_scan(act):
    mixer, x = randomised(Cumulative(6, act)), random_map(2, 6, 5, 4)
    expected = torch.stack([equation(mixer, image, act()) for image in x])
    torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', ['even', 'odd'])
@pytest.mark.parametrize('backend', ['naive', 'torch'])
def test_es2d_equals_the_released_module(reference_dir, size, backend):
    parity = np.load(reference_dir / 'official_parity_es2d.npz')
    mixer = ES2D(16, backend=backend)
    mixer.load_state_dict(
        {
            key.removeprefix('weight/'): torch.from_numpy(parity[key])
            for key in parity
            if key.startswith('weight/')
        }
    )
    # The released module exchanges (B, H, W, C).
    x = torch.from_numpy(parity[f'input/{size}']).permute(0, 3, 1, 2)
    expected = torch.from_numpy(parity[f'output/{size}'])
    actual = mixer(x).permute(0, 2, 3, 1)
    assert (actual - expected).norm() / expected.norm() < 1e-5


MIXERS = {
    'step1': lambda: ES2D(6, step_size=1),
    'step2': lambda: ES2D(6, step_size=2),
    'step3': lambda: ES2D(6, step_size=3),
    'ss2d': lambda: SS2D(6),
    'rows': lambda: SS2D(6, directions=['rows', 'rows_reversed']),
}


@pytest.mark.parametrize('name', MIXERS)
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5)], ids=str)
def test_any_size_and_every_gradient(name, size):
    mixer, x = MIXERS[name](), random_map(2, 6, *size).requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    gradients = torch.autograd.grad(
        y.square().sum(), [x, *mixer.parameters()], allow_unused=True
    )
    names = ['x', *(n for n, _ in mixer.named_parameters())]
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient is not None and gradient.isfinite().all(), name


@pytest.mark.parametrize('name', MIXERS)
def test_memory_stays_channels_last(name):
    mixer, x = MIXERS[name](), random_map(2, 6, 5, 7)
    y = mixer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(mixer(x.contiguous()), y)


def test_batch_of_one_equals_batch_of_many():
    mixer, x = ES2D(8), random_map(5, 8, 6, 7)
    alone = torch.cat([mixer(image[None]) for image in x])
    torch.testing.assert_close(mixer(x), alone, rtol=1e-5, atol=1e-6)


def test_initialisation():
    torch.manual_seed(0)
    mixer = ES2D(64)
    inner, rank = 128, 4
    assert mixer.x_proj_weight.shape == (4, rank + 32, inner)
    torch.testing.assert_close(
        mixer.A_logs, torch.arange(1.0, 17.0).log().expand(4 * inner, 16)
    )
    assert mixer.Ds.eq(1).all()
    assert mixer.dt_projs_weight.abs().max() <= rank**-0.5
    assert mixer.dt_projs_weight.std().item() == pytest.approx(
        rank**-0.5 / math.sqrt(3), rel=0.1
    )
    dt = F.softplus(mixer.dt_projs_bias)
    assert 0.001 <= dt.min() * 1.001 and dt.max() <= 0.1001
    assert dt.log().mean().item() == pytest.approx(math.log(0.01), rel=0.05)
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mixer.in_proj.bias is None and mixer.out_proj.bias is None


def test_sizes_follow_the_options():
    mixer = ES2D(8, step_size=1, d_state=4, expand_ratio=3, dt_rank=2)
    assert mixer.x_proj_weight.shape == (1, 2 + 2 * 4, 24)
    assert mixer.dt_projs_weight.shape == (1, 24, 2)
    assert mixer.A_logs.shape == (24, 4)
    assert SS2D(8, directions=('rows',)).Ds.shape == (16,)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(channels=0), 'channels must be an integer'),
        (dict(channels=8, d_state=0), 'd_state must be an integer'),
        (dict(channels=8, expand_ratio=0), 'expand_ratio must be an integer'),
        (dict(channels=8, dt_rank=-1), 'dt_rank must be an integer'),
        (dict(channels=8, step_size=0), 'step_size must be an integer'),
        (dict(channels=8, backend='fpga'), "'fpga'"),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ES2D(**options)


def test_illegal_direction_is_named():
    with pytest.raises(ValueError, match='diagonal'):
        SS2D(8, directions=['diagonal'])(random_map(1, 8, 2, 2))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_close(dtype):
    torch.manual_seed(0)
    mixer, x = ES2D(16), random_map(2, 16, 9, 11)
    expected = mixer(x)
    actual = mixer.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() / expected.norm() < 2e-2


def test_the_repr_shows_what_is_scanned():
    assert repr(ES2D(8, step_size=3)).startswith('ES2D(\n  step_size=3\n')
    assert "directions=('rows',)" in repr(SS2D(8, directions=['rows']))
