import math

import numpy as np
import pytest
import torch

from evmamba_mm.layers import ES2D, SS2D


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
    expected = torch.from_numpy(parity[f'output/{size}'])
    actual = mixer(torch.from_numpy(parity[f'input/{size}']))
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(
    'mixer',
    [ES2D(6, step_size=s) for s in (1, 2, 3)] + [SS2D(6)],
    ids=['step1', 'step2', 'step3', 'ss2d'],
)
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5)], ids=str)
def test_any_size_and_every_gradient(mixer, size):
    x = torch.randn(2, *size, 6, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape
    gradients = torch.autograd.grad(
        y.square().sum(), [x, *mixer.parameters()], allow_unused=True
    )
    names = ['x', *(n for n, _ in mixer.named_parameters())]
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient is not None and gradient.isfinite().all(), name


def test_batch_of_one_equals_batch_of_many():
    mixer, x = ES2D(8), torch.randn(5, 6, 7, 8)
    together = mixer(x)
    alone = torch.cat([mixer(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


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
    dt = torch.nn.functional.softplus(mixer.dt_projs_bias)
    assert 0.001 <= dt.min() * 1.001 and dt.max() <= 0.1001
    assert dt.log().mean().item() == pytest.approx(math.log(0.01), rel=0.05)
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mixer.in_proj.bias is None and mixer.out_proj.bias is None


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(channels=0), 'channels must be at least 1, got 0'),
        (dict(channels=8, d_state=0), 'd_state must be at least 1'),
        (dict(channels=8, dt_rank=-1), 'dt_rank must be at least 1'),
        (dict(channels=8, step_size=0), 'step_size must be an integer'),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ES2D(**options)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_close(dtype):
    torch.manual_seed(0)
    mixer, x = ES2D(16), torch.randn(2, 9, 11, 16)
    expected = mixer(x)
    actual = mixer.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() / expected.norm() < 2e-2
