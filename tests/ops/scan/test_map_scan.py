import functools

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops import (
    atrous_merge,
    atrous_scan,
    es2d_scan,
    ss2d_scan,
)
from evmamba_mm.ops.scan.geometry import CrossDirections
from evmamba_mm.ops.scan.numba_scan import numba_installed

from .scan_cases import (
    DIRECTION_CHOICES,
    loop_reference,
    map_parameters,
    relative_error,
)

D, N, R = 4, 3, 2
BACKENDS = ['naive', 'torch'] + ['numba'] * numba_installed()
parameters = functools.partial(map_parameters, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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
@pytest.mark.parametrize('directions', DIRECTION_CHOICES, ids=len)
def test_ss2d_sums_its_directions(size, directions):
    x = torch.randn(2, *size, D, dtype=torch.float64)
    p = parameters(len(directions))
    geometry = CrossDirections(directions)
    sequences = reference(geometry.scan(x), geometry.parameter_sets, p)
    expected = geometry.merge(sequences, *size)
    y = ss2d_scan(x, **p, directions=directions)
    assert relative_error(y, expected) < 1e-12


@pytest.mark.parametrize('directions', DIRECTION_CHOICES, ids=len)
@pytest.mark.parametrize('backend', BACKENDS)
@torch.no_grad()
def test_each_backend_adds_up_all_directions(backend, directions):
    count = len(directions)
    x, p = torch.randn(2, 5, 3, D), parameters(count, dtype=torch.float32)
    by_set = [v.double().unflatten(0, (count, -1)) for v in p.values()]
    expected = sum(
        ss2d_scan(
            x.double(),
            *(v[k] for v in by_set),
            directions=(name,),
            backend='naive',
        )
        for k, name in enumerate(directions)
    )
    y = ss2d_scan(x, **p, directions=directions, backend=backend)
    assert relative_error(y, expected) < 1e-5


@pytest.mark.parametrize('backend', BACKENDS)
@torch.no_grad()
def test_each_backend_refuses_another_number_of_sets(backend):
    x, p = torch.zeros(1, 4, 4, D), parameters(4, dtype=torch.float32)
    for scan, options in (
        (es2d_scan, dict(step_size=1)),
        (ss2d_scan, dict(directions=('rows', 'columns', 'rows'))),
        (ss2d_scan, dict(directions=('rows',) * 5)),
    ):
        with pytest.raises(ValueError, match='x_proj_weight must have shape'):
            scan(x, **p, **options, backend=backend)


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


@pytest.mark.parametrize('backend', ['naive', 'torch'])
@pytest.mark.parametrize('scan', [es2d_scan, ss2d_scan])
def test_half_precision_map_meets_fp32_parameters(scan, backend):
    p = parameters(4, dtype=torch.float32)
    x = torch.randn(2, 3, 5, D)
    y = scan(x.bfloat16(), **p, backend=backend)
    assert y.dtype == torch.bfloat16
    expected = scan(x.bfloat16().float(), **p, backend='naive')
    assert relative_error(y.float(), expected) < 2e-2


@pytest.mark.parametrize('shape', [(4, 4, D), (1, 0, 4, D), (1, 4, 0, D)])
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('scan', [es2d_scan, ss2d_scan])
@torch.no_grad()
def test_a_map_without_cells_is_named(scan, backend, shape):
    p = parameters(4, dtype=torch.float32)
    with pytest.raises(ValueError, match=r'\(B, H, W, C\) with H and W'):
        scan(torch.zeros(shape), **p, backend=backend)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('scan', [es2d_scan, ss2d_scan])
def test_an_empty_batch(scan, backend):
    p = parameters(4, dtype=torch.float32)
    with torch.set_grad_enabled(backend != 'numba'):
        leaves = [v.requires_grad_() for v in p.values()]
        y = scan(torch.zeros(0, 5, 3, D), *leaves, backend=backend)
    assert y.shape == (0, 5, 3, D)
    if y.requires_grad:
        for gradient in torch.autograd.grad(y.sum(), leaves):
            assert not gradient.any()


@pytest.mark.parametrize('step', [1, 2, 3])
def test_es2d_on_the_meta_device(step):
    p = parameters(min(4, step**2), dtype=torch.float32, device='meta')
    leaves = [v.requires_grad_() for v in p.values()]
    x = torch.zeros(2, 5, 3, D, device='meta')
    y = es2d_scan(x, *leaves, step_size=step)
    assert y.shape == x.shape
    assert y.is_meta
    for leaf, gradient in zip(
        leaves, torch.autograd.grad(y.sum(), leaves), strict=True
    ):
        assert gradient.shape == leaf.shape


def test_ss2d_on_the_meta_device():
    p = parameters(4, dtype=torch.bfloat16, device='meta')
    y = ss2d_scan(torch.zeros(2, 5, 3, D, device='meta').bfloat16(), **p)
    assert (y.shape, y.dtype) == ((2, 5, 3, D), torch.bfloat16)
