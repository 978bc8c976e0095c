"""Transforms and other modes of differentiation against the naive scan.

None may be wrong in silence: each is right, or an error.
"""

import functools
import warnings

import pytest
import torch
from torch.autograd import forward_ad

from evmamba_mm.ops import es2d_scan, selective_scan, ss2d_scan
from evmamba_mm.ops.scan.numba_scan import numba_installed

from .scan_cases import map_parameters, relative_error, scan_arguments

SIZE = (2, 3, 5, 4)
SCANS = {
    'es2d-2': functools.partial(es2d_scan, step_size=2),
    'es2d-3': functools.partial(es2d_scan, step_size=3),
    'ss2d': ss2d_scan,
}


@pytest.fixture(params=SCANS)
def scans(request):
    """A scan by the automatic choice and the naive one, of a map alone."""
    p = map_parameters(4, torch.float64)
    scan = SCANS[request.param]
    return (
        functools.partial(scan, **p),
        functools.partial(scan, **p, backend='naive'),
    )


def maps(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *SIZE, generator=generator, dtype=torch.float64)


def loss_of(scan):
    return lambda x: scan(x).sin().sum()


def by_sample(scan):
    """The scan of a map without a batch."""
    return lambda x: scan(x[None])[0]


def test_jvp_equals_naive_and_finite_differences(scans):
    fast, naive = scans
    x, tangent = maps()
    y, dy = torch.func.jvp(fast, (x,), (tangent,))
    assert relative_error(y, naive(x)) < 1e-12
    expected = torch.func.jvp(naive, (x,), (tangent,))[1]
    assert relative_error(dy, expected) < 1e-12
    eps = 1e-6
    above, below = naive(x + eps * tangent), naive(x - eps * tangent)
    assert relative_error(dy, (above - below) / (2 * eps)) < 1e-7


def test_jvp_of_every_parameter():
    p = map_parameters(4, torch.float64)
    tangents = {k: torch.randn_like(v) for k, v in p.items()}
    x = maps()[0]
    fast, naive = (
        torch.func.jvp(
            lambda p, backend=backend: es2d_scan(x, **p, backend=backend),
            (p,),
            (tangents,),
        )[1]
        for backend in ('auto', 'naive')
    )
    assert relative_error(fast, naive) < 1e-12


def test_dual_numbers_equal_jvp(scans):
    fast, naive = scans
    x, tangent = maps()
    expected = torch.func.jvp(naive, (x,), (tangent,))[1]
    with forward_ad.dual_level():
        y = fast(forward_ad.make_dual(x, tangent))
        assert (
            relative_error(forward_ad.unpack_dual(y).tangent, expected) < 1e-12
        )


def test_gradcheck_in_forward_mode():
    p = map_parameters(4, torch.float64).values()
    leaves = [v.requires_grad_() for v in (maps()[0, :1, :2, :3], *p)]
    assert torch.autograd.gradcheck(
        es2d_scan, leaves, check_forward_ad=True, fast_mode=True
    )


def test_jacobians_by_both_modes_agree(scans):
    fast, naive = scans
    x = maps()[0, :1, :3, :2]
    forward = torch.func.jacfwd(fast)(x)
    assert relative_error(forward, torch.func.jacfwd(naive)(x)) < 1e-12
    assert relative_error(forward, torch.func.jacrev(fast)(x)) < 1e-12


@pytest.mark.parametrize(
    'hessian',
    [
        torch.func.hessian,
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    ],
    ids=['forward-reverse', 'reverse-reverse', 'reverse-forward'],
)
def test_second_derivatives_by_transforms(hessian, scans):
    fast, naive = scans
    x = maps()[0, :1, :2, :2]
    expected = hessian(loss_of(naive))(x)
    assert expected.abs().max() > 1e-3
    assert relative_error(hessian(loss_of(fast))(x), expected) < 1e-12


def test_second_derivatives_by_backward_are_an_error(scans):
    fast, _ = scans
    x = maps()[0].requires_grad_()
    (dx,) = torch.autograd.grad(loss_of(fast)(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative.*naive'):
        torch.autograd.grad(dx.sum(), x)


def test_a_tangent_that_only_the_backward_sees_is_an_error(scans):
    fast, _ = scans
    x, tangent = maps()
    y = fast(x.requires_grad_())
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(torch.ones_like(y), tangent)
        with pytest.raises(RuntimeError, match='no forward-mode derivative'):
            torch.autograd.grad(y, x, dy)


def test_grad_and_vmap_of_grad(scans):
    fast, naive = scans
    x = maps()[0]
    expected = torch.func.grad(loss_of(naive))(x)
    assert relative_error(torch.func.grad(loss_of(fast))(x), expected) < 1e-12
    by_map = torch.func.vmap(torch.func.grad(loss_of(by_sample(fast))))
    assert relative_error(by_map(x), expected) < 1e-12


# Torch warns that it runs a custom op once a sample.
@pytest.mark.filterwarnings('ignore:There is a performance drop')
@pytest.mark.parametrize('in_dim', [0, 2])
def test_vmap_and_its_gradients(in_dim, scans):
    fast, naive = scans
    x = maps()[0].requires_grad_()
    expected = naive(x)
    mapped = torch.func.vmap(by_sample(fast), in_dims=in_dim)
    y = mapped(x.movedim(0, in_dim))
    assert relative_error(y, expected) < 1e-12
    gradients = [torch.autograd.grad(z.sin().sum(), x) for z in (y, expected)]
    assert relative_error(gradients[0][0], gradients[1][0]) < 1e-12
    inside = torch.func.grad(
        lambda x: torch.func.vmap(by_sample(fast))(x).sin().sum()
    )
    assert relative_error(inside(x.detach()), gradients[1][0]) < 1e-12


@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_vmap_over_parameters():
    sets = [map_parameters(4, torch.float64), map_parameters(4, torch.float64)]
    sets[1] = {k: v.cos() for k, v in sets[1].items()}
    stacked = {k: torch.stack([p[k] for p in sets]) for k in sets[0]}
    x = maps()[0]
    y = torch.func.vmap(lambda p: es2d_scan(x, **p))(stacked)
    for k, p in enumerate(sets):
        expected = es2d_scan(x, **p, backend='naive')
        assert relative_error(y[k], expected) < 1e-12


@pytest.mark.skipif(not numba_installed(), reason='numba is not installed')
@torch.no_grad()
def test_numba_under_transforms():
    p, x = map_parameters(4), maps().float()
    scan = functools.partial(es2d_scan, **p, backend='numba')
    naive = functools.partial(es2d_scan, **p, backend='naive')
    dy = torch.func.jvp(scan, (x[0],), (x[1],))[1]
    expected = torch.func.jvp(naive, (x[0],), (x[1],))[1]
    assert relative_error(dy, expected) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        y = torch.func.vmap(by_sample(scan))(x[0])
    assert relative_error(y, naive(x[0])) < 1e-5


@pytest.mark.parametrize('backend', ['cuda', 'mamba_ssm'])
def test_a_forced_kernel_is_an_error(backend, monkeypatch):
    monkeypatch.setattr(
        'evmamba_mm.ops.scan.backend.cuda.device_served', lambda _: True
    )
    p, x = map_parameters(4), maps()[0].float()
    scan = functools.partial(es2d_scan, **p, backend=backend)
    with pytest.raises(ValueError, match='no derivative for torch.func.jvp'):
        torch.func.jvp(scan, (x,), (x,))
    with pytest.raises(ValueError, match='no derivative for torch.func.jvp'):
        torch.func.grad(loss_of(scan))(x)


def test_jvp_of_a_sequence():
    a = scan_arguments(length=9)
    tangents = {k: torch.randn_like(v) for k, v in a.items()}
    fast, naive = (
        torch.func.jvp(
            lambda a, backend=backend: selective_scan(**a, backend=backend),
            (a,),
            (tangents,),
        )[1]
        for backend in ('torch', 'naive')
    )
    assert relative_error(fast, naive) < 1e-12
