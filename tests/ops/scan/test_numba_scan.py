import sys
import threading

import pytest
import torch

from evmamba_mm.ops import (
    AtrousGroups,
    CrossDirections,
    es2d_scan,
    selective_scan,
    ss2d_scan,
)
from evmamba_mm.ops.scan import numba_scan

from .scan_cases import (
    DIRECTION_CHOICES,
    loop_reference,
    map_parameters,
    relative_error,
    scan_arguments,
)

pytestmark = pytest.mark.skipif(
    not numba_scan.numba_installed(), reason='numba is not installed'
)
TOLERANCE = 2e-6


@pytest.fixture(params=[1, 2], ids=['one-thread', 'two-threads'])
def threads(request, threads_kept):
    torch.set_num_threads(request.param)


@pytest.fixture
def threads_kept():
    """What any thread sets is also for all threads that start later."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def single(arguments):
    return {k: v.float() for k, v in arguments.items()}


@pytest.mark.parametrize('soft', [True, False], ids=['softplus', 'plain'])
@pytest.mark.parametrize(
    ('channels', 'states', 'length'),
    [(1, 1, 1), (5, 4, 37), (48, 16, 63), (49, 3, 20), (96, 16, 500)],
    ids=str,
)
def test_sequences_match_the_equations(
    channels, states, length, soft, threads
):
    a = scan_arguments(2, 3, channels, states, length, dtype=torch.float32)
    if not soft:
        a['delta'] = a['delta'].abs()
        a['delta_bias'] = a['delta_bias'].abs()
    y = numba_scan.scan_numba(**a, delta_softplus=soft)
    expected = selective_scan(
        **{k: v.double() for k, v in a.items()},
        delta_softplus=soft,
        backend='naive',
    )
    assert y.is_contiguous()
    assert relative_error(y, expected) < TOLERANCE


def test_naive_is_the_loop():
    a = scan_arguments(1, 2, 3, 4, 9, dtype=torch.float32)
    y = numba_scan.scan_numba(**a, delta_softplus=True)
    assert relative_error(y, loop_reference(**a)) < TOLERANCE


def test_optional_arguments_may_be_left_out():
    a = scan_arguments(dtype=torch.float32)
    a['D'] = a['delta_bias'] = None
    y = numba_scan.scan_numba(**a, delta_softplus=True)
    assert relative_error(y, loop_reference(**a)) < TOLERANCE


@pytest.mark.parametrize('scale', [1e-4, 30.0], ids=['small', 'large'])
def test_extreme_step_sizes(scale):
    a = scan_arguments(1, 1, 8, 4, 50, dtype=torch.float32)
    a['delta'] = a['delta'] * scale
    a['delta_bias'] = a['delta_bias'] * 0 - (7 if scale < 1 else 0)
    y = numba_scan.scan_numba(**a, delta_softplus=True)
    assert relative_error(y, loop_reference(**a)) < TOLERANCE


def test_a_missing_number_stays_missing():
    a = scan_arguments(1, 1, 8, 4, 10, dtype=torch.float32)
    a['u'][0, 3, 5] = float('nan')
    y = numba_scan.scan_numba(**a, delta_softplus=True)
    assert y[0, 3, :5].isfinite().all()
    assert y[0, 3, 5:].isnan().all()
    assert y[0, torch.arange(8) != 3].isfinite().all()


@pytest.mark.parametrize('layout', ['contiguous', 'channels-first'])
@pytest.mark.parametrize(
    'size', [(1, 1), (1, 5), (5, 3), (4, 4), (14, 9)], ids=str
)
@pytest.mark.parametrize('step', [1, 2, 3, 4])
def test_es2d_matches_naive(step, size, layout, threads):
    p = map_parameters(min(4, step**2), channels=50)
    x = torch.randn(2, *size, 50)
    if layout == 'channels-first':
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    y = numba_scan.es2d_scan_numba(x, **p, geometry=AtrousGroups(step))
    expected = es2d_scan(
        x.double(),
        **{k: v.double() for k, v in p.items()},
        step_size=step,
        backend='naive',
    )
    assert y.is_contiguous()
    assert relative_error(y, expected) < 1e-5


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (5, 3), (14, 9)], ids=str)
@pytest.mark.parametrize('directions', DIRECTION_CHOICES, ids=len)
def test_ss2d_matches_naive(directions, size, threads):
    p = map_parameters(len(directions), channels=50)
    x = torch.randn(2, *size, 50)
    geometry = CrossDirections(directions)
    y = numba_scan.ss2d_scan_numba(x, **p, geometry=geometry)
    expected = ss2d_scan(
        x.double(),
        **{k: v.double() for k, v in p.items()},
        directions=directions,
        backend='naive',
    )
    assert relative_error(y, expected) < 1e-5


def test_ops_check_the_number_of_sets():
    ops, x = torch.ops.evmamba_mm, torch.zeros(1, 4, 4, 4)
    for sets in (3, 5):
        p = map_parameters(sets).values()
        with pytest.raises(ValueError, match='x_proj_weight must have shape'):
            ops.es2d_scan_numba(x, *p, 2)
        with pytest.raises(ValueError, match='x_proj_weight must have shape'):
            ops.ss2d_scan_numba(x, *p, [0, 1, 2, 3])


def test_sequences_without_steps_or_samples():
    for sizes in (dict(length=0), dict(batch=0)):
        a = scan_arguments(**sizes, dtype=torch.float32)
        y = numba_scan.scan_numba(**a, delta_softplus=True)
        assert y.shape == a['u'].shape


def test_operators_tell_their_shapes():
    a = scan_arguments(2, 3, 5, 4, 7, dtype=torch.float32)
    p = tuple(map_parameters(4, channels=6).values())
    x = torch.randn(1, 5, 6, 6)
    ops = torch.ops.evmamba_mm
    torch.library.opcheck(ops.selective_scan_numba, (*a.values(), True))
    torch.library.opcheck(ops.es2d_scan_numba, (x, *p, 2))
    torch.library.opcheck(ops.ss2d_scan_numba, (x, *p, [0, 3, 2, 1]))


def test_callers_in_two_threads_do_not_meet(threads_kept):
    a = scan_arguments(2, 2, 48, 8, 200, dtype=torch.float32)
    expected = numba_scan.scan_numba(**a, delta_softplus=True)
    results = []

    def call():
        torch.set_num_threads(2)
        for _ in range(10):
            results.append(numba_scan.scan_numba(**a, delta_softplus=True))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 30
    assert all(torch.equal(y, expected) for y in results)


@pytest.mark.parametrize(
    ('tensor', 'served'),
    [
        (torch.zeros(1), True),
        (torch.zeros(1, dtype=torch.float64), False),
        (torch.zeros(1, dtype=torch.bfloat16), False),
        (torch.zeros(1, device='meta'), False),
        (torch.zeros(1, requires_grad=True), False),
    ],
    ids=['fp32', 'fp64', 'bf16', 'elsewhere', 'wants-gradient'],
)
def test_what_the_kernels_serve(tensor, served):
    assert numba_scan.numba_serves(torch.zeros(1), None, tensor) is served


def test_a_gradient_that_nobody_records_is_served():
    with torch.no_grad():
        assert numba_scan.numba_serves(torch.zeros(1, requires_grad=True))


def test_serial_and_parallel_forms_are_cached_apart():
    kernels = numba_scan._kernels()
    files = {
        form._cache._cache_file._index_path
        for form in (kernels.scan_serial, kernels.scan_parallel)
    }
    assert len(files) == 2


def test_no_folder_for_the_cache_is_no_obstacle(monkeypatch):
    kernels = numba_scan._kernels()
    njit = kernels.numba.njit
    # At its first compilation numba compiles parts of its own.
    njit(lambda x: x)(1)

    def refusing(cache=False, **options):
        if cache:
            raise RuntimeError('cannot cache function: no locator available')
        return njit(**options)

    monkeypatch.setattr(kernels.numba, 'njit', refusing)
    assert kernels._compile(lambda x: x + 1)(2) == 3


def test_missing_numba_is_told_with_the_install_line(monkeypatch):
    name = 'evmamba_mm.ops.scan.numba_kernels'
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(name, raising=False)
    monkeypatch.setattr(
        numba_scan, '_kernels', numba_scan._kernels.__wrapped__
    )
    with pytest.raises(ImportError, match=r'pip install "evmamba_mm\[numba\]'):
        numba_scan.scan_numba(
            **scan_arguments(dtype=torch.float32), delta_softplus=True
        )
