import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops import (
    atrous_merge,
    atrous_scan,
    cross_merge,
    cross_scan,
    es2d_scan,
    ss2d_scan,
)

from .scan_cases import loop_reference, relative_error

D, N, R = 4, 3, 2


def parameters(sets, dtype=torch.float64, channels=D):
    torch.manual_seed(0)
    return dict(
        x_proj_weight=torch.randn(sets, R + 2 * N, channels).to(dtype),
        dt_projs_weight=torch.randn(sets, channels, R).to(dtype),
        dt_projs_bias=torch.randn(sets, channels).to(dtype),
        A_logs=torch.randn(sets * channels, N).to(dtype),
        Ds=torch.randn(sets * channels).to(dtype),
    )


def reference(sequences, sets, p):
    """Every sequence by itself with the parameters of its set."""
    outputs = []
    for g, k in enumerate(sets):
        x = sequences[:, g]
        projected = p['x_proj_weight'][k] @ x
        dt, b, c = projected.split([R, N, N], dim=1)
        rows = slice(k * D, (k + 1) * D)
        outputs.append(
            loop_reference(
                x,
                p['dt_projs_weight'][k] @ dt,
                -p['A_logs'][rows].exp(),
                b[:, None],
                c[:, None],
                p['Ds'][rows],
                p['dt_projs_bias'][k],
            )
        )
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (5, 3), (4, 4)], ids=str)
@pytest.mark.parametrize(
    ('step', 'sets'),
    [
        (1, [0]),
        (2, [0, 1, 2, 3]),
        (3, [0, 1, 0, 2, 3, 2, 0, 1, 0]),
        (4, [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]),
    ],
)
def test_es2d_scans_each_group_with_its_set(size, step, sets):
    x = torch.randn(2, *size, D, dtype=torch.float64)
    p = parameters(max(sets) + 1)
    expected = reference(atrous_scan(x, step), sets, p)
    expected = atrous_merge(expected, *size, step)
    assert relative_error(es2d_scan(x, **p, step_size=step), expected) < 1e-12


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (5, 3)], ids=str)
def test_ss2d_sums_the_four_directions(size):
    x = torch.randn(2, *size, D, dtype=torch.float64)
    p = parameters(4)
    expected = cross_merge(reference(cross_scan(x), range(4), p), *size)
    assert relative_error(ss2d_scan(x, **p), expected) < 1e-12


@pytest.mark.parametrize('step', [1, 2, 3])
def test_every_parameter_has_a_gradient(step):
    x = torch.randn(1, 5, 6, D, dtype=torch.float64, requires_grad=True)
    p = parameters(min(4, step**2))
    leaves = [v.requires_grad_() for v in p.values()]
    loss = F.mse_loss(es2d_scan(x, *leaves, step_size=step), x + 1)
    for gradient in torch.autograd.grad(loss, [x, *leaves]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_backends_agree():
    x, p = torch.randn(2, 7, 5, D, dtype=torch.float64), parameters(4)
    torch.testing.assert_close(
        es2d_scan(x, **p, backend='naive'), es2d_scan(x, **p, backend='torch')
    )


@pytest.mark.parametrize(
    'name', ['x_proj_weight', 'dt_projs_bias', 'A_logs', 'Ds']
)
def test_wrong_parameter_shape_is_named(name):
    p = parameters(4)
    p[name] = p[name][1:]
    with pytest.raises(ValueError, match=f'{name} must have shape'):
        es2d_scan(torch.zeros(1, 4, 4, D).double(), **p)


@pytest.mark.parametrize('backend', ['naive', 'torch'])
@pytest.mark.parametrize('scan', [es2d_scan, ss2d_scan])
def test_half_precision_map_meets_fp32_parameters(scan, backend):
    p = parameters(4, torch.float32)
    x = torch.randn(2, 3, 5, D)
    y = scan(x.bfloat16(), **p, backend=backend)
    assert y.dtype == torch.bfloat16
    expected = scan(x.bfloat16().float(), **p, backend='naive')
    assert relative_error(y.float(), expected) < 2e-2


def test_wrong_map_is_named():
    with pytest.raises(ValueError, match=r'\(B, H, W, D\)'):
        ss2d_scan(torch.zeros(4, 4, D), **parameters(4, torch.float32))
