import functools

import pytest
import torch

from evmamba_mm.ops import selective_scan
from evmamba_mm.ops.scan import torch_scan
from evmamba_mm.ops.scan.mamba_scan import mamba_kernel_installed

from .scan_cases import (
    NAMES,
    devices,
    loop_reference,
    relative_error,
    scan_arguments,
    value_and_gradients,
)

naive = functools.partial(selective_scan, backend='naive')
fast = functools.partial(selective_scan, backend='torch')
needs_kernel = pytest.mark.skipif(
    not (torch.cuda.is_available() and mamba_kernel_installed()),
    reason="needs a GPU and mamba-ssm's compiled scan",
)

SHAPES = [
    dict(batch=1, groups=1, channels=1, states=1, length=1),
    dict(batch=2, groups=4, channels=3, states=16, length=7),
    dict(batch=1, groups=2, channels=7, states=5, length=63),
    dict(batch=3, groups=9, channels=2, states=3, length=500),
    dict(batch=2, groups=1, channels=48, states=64, length=19),
]


def shape_id(shape):
    return '-'.join(f'{k[0]}{v}' for k, v in shape.items())


@pytest.fixture(params=['default', 'short segments', 'many lanes'])
def segmentation(request, monkeypatch):
    """Make small tests pass through every way of cutting a sequence."""
    if request.param != 'default':
        segment = {'cpu': 500, 'other': 500}
        monkeypatch.setattr(torch_scan, '_SEGMENT_ELEMENTS', segment)
    if request.param == 'many lanes':
        lanes = {'cpu': 10**6, 'other': 10**6}
        monkeypatch.setattr(torch_scan, '_LANE_ELEMENTS', lanes)


@pytest.mark.parametrize('with_options', [True, False])
def test_naive_equals_the_equations(with_options):
    arguments = scan_arguments(batch=2, groups=2, channels=2, length=11)
    if not with_options:
        arguments |= dict(D=None, delta_bias=None)
    expected = loop_reference(**arguments, delta_softplus=with_options)
    actual = naive(**arguments, delta_softplus=with_options)
    assert relative_error(actual, expected) < 1e-14


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('shape', SHAPES, ids=shape_id)
def test_torch_equals_naive(shape, device, segmentation):
    arguments = scan_arguments(**shape, device=device)
    y, gradients = value_and_gradients(fast, arguments)
    y_naive, gradients_naive = value_and_gradients(naive, arguments)
    assert relative_error(y, y_naive) < 1e-13
    for name in NAMES:
        error = relative_error(gradients[name], gradients_naive[name])
        assert error < 1e-12, name


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('backend', ['naive', 'torch'])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float32, 2e-6), (torch.bfloat16, 5e-3), (torch.float16, 7e-4)],
    ids=str,
)
def test_accumulates_in_fp32(dtype, tolerance, backend, device):
    arguments = scan_arguments(length=300, dtype=dtype, device=device)
    function = functools.partial(selective_scan, backend=backend)
    y, gradients = value_and_gradients(function, arguments)
    exact = {k: v.double() for k, v in arguments.items()}
    y_exact, gradients_exact = value_and_gradients(naive, exact)
    assert y.dtype == dtype
    assert relative_error(y, y_exact) < tolerance
    for name in NAMES:
        error = relative_error(gradients[name], gradients_exact[name])
        assert error < 2 * tolerance, name


@pytest.mark.parametrize('options', ['none', 'D', 'delta_bias'])
@pytest.mark.parametrize('softplus', [True, False])
def test_options(options, softplus):
    arguments = scan_arguments(length=9)
    arguments['delta'] = arguments['delta'].abs()
    arguments = {
        k: v
        for k, v in arguments.items()
        if k not in ('D', 'delta_bias') or k == options
    }
    results = [
        value_and_gradients(
            functools.partial(f, delta_softplus=softplus), arguments
        )
        for f in (fast, naive)
    ]
    assert relative_error(results[0][0], results[1][0]) < 1e-13
    for name in arguments:
        error = relative_error(results[0][1][name], results[1][1][name])
        assert error < 1e-12, name


def test_gradcheck_of_the_torch_path(monkeypatch):
    segment = {'cpu': 30, 'other': 30}
    monkeypatch.setattr(torch_scan, '_SEGMENT_ELEMENTS', segment)
    arguments = scan_arguments(1, 2, 2, 2, length=20, scale=0.5)
    leaves = [v.requires_grad_() for v in arguments.values()]
    assert torch.autograd.gradcheck(fast, leaves)


@pytest.mark.parametrize('backend', ['naive', 'torch'])
def test_large_magnitudes_stay_finite(backend):
    arguments = scan_arguments(length=40, dtype=torch.float32, scale=30.0)
    y, gradients = value_and_gradients(
        functools.partial(selective_scan, backend=backend), arguments
    )
    exact = {k: v.double() for k, v in arguments.items()}
    y_exact, _ = value_and_gradients(naive, exact)
    assert relative_error(y, y_exact) < 1e-5
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize('backend', ['naive', 'torch'])
def test_empty_batch(backend):
    arguments = scan_arguments(batch=0)
    y, gradients = value_and_gradients(
        functools.partial(selective_scan, backend=backend), arguments
    )
    assert y.shape == (0, 15, 37)
    assert all(gradients[k].eq(0).all() for k in ('A', 'D', 'delta_bias'))


def test_length_zero():
    arguments = scan_arguments(length=0)
    y, gradients = value_and_gradients(fast, arguments)
    assert y.shape == (2, 15, 0)
    assert all(not gradients[name].any() for name in NAMES)
    assert naive(**arguments).shape == y.shape


@pytest.mark.parametrize('backend', ['naive', 'torch'])
def test_non_contiguous_arguments(backend):
    arguments = scan_arguments()
    strided = {
        k: v.mT.contiguous().mT if v.dim() > 1 else v.repeat_interleave(2)[::2]
        for k, v in arguments.items()
    }
    torch.testing.assert_close(
        selective_scan(**strided, backend=backend),
        selective_scan(**arguments, backend=backend),
    )


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('backend', ['naive', 'torch'])
def test_autocast_changes_nothing(backend, device):
    arguments = scan_arguments(dtype=torch.float32, device=device)
    function = functools.partial(selective_scan, backend=backend)
    y, gradients = value_and_gradients(function, arguments)
    with torch.autocast(device, dtype=torch.bfloat16):
        y_amp, gradients_amp = value_and_gradients(function, arguments)
    assert torch.equal(y, y_amp)
    for name in NAMES:
        torch.testing.assert_close(gradients[name], gradients_amp[name])


def test_custom_op_contract():
    arguments = scan_arguments(1, 2, 2, 2, length=20)
    values = [v.requires_grad_() for v in arguments.values()]
    torch.library.opcheck(
        torch.ops.evmamba_mm.selective_scan.default, (*values, True)
    )


def test_compiles_without_a_graph_break():
    arguments = scan_arguments(dtype=torch.float32)
    compiled = torch.compile(fast, fullgraph=True, backend='aot_eager')
    y, gradients = value_and_gradients(compiled, arguments)
    y_eager, gradients_eager = value_and_gradients(fast, arguments)
    torch.testing.assert_close(y, y_eager)
    for name in NAMES:
        torch.testing.assert_close(gradients[name], gradients_eager[name])


@needs_kernel
@pytest.mark.parametrize('shape', SHAPES, ids=shape_id)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float32, 5e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)],
    ids=str,
)
def test_mamba_kernel_equals_naive(dtype, tolerance, shape):
    arguments = scan_arguments(**shape, dtype=dtype, device='cuda')
    kernel = functools.partial(selective_scan, backend='mamba_ssm')
    y, gradients = value_and_gradients(kernel, arguments)
    exact = {k: v.double() for k, v in arguments.items()}
    y_exact, gradients_exact = value_and_gradients(naive, exact)
    assert y.dtype == dtype
    assert relative_error(y, y_exact) < tolerance
    for name in NAMES:
        error = relative_error(gradients[name], gradients_exact[name])
        assert error < 2 * tolerance, name


@needs_kernel
def test_mamba_kernel_takes_mixed_dtypes_and_an_empty_batch():
    arguments = scan_arguments(dtype=torch.float32, device='cuda')
    arguments['u'] = arguments['u'].bfloat16()
    y = selective_scan(**arguments, backend='mamba_ssm')
    assert y.dtype == torch.bfloat16
    assert relative_error(y, naive(**arguments)) < 1e-2
    empty = scan_arguments(batch=0, dtype=torch.float32, device='cuda')
    assert selective_scan(**empty, backend='mamba_ssm').shape[0] == 0


@pytest.mark.parametrize(
    ('name', 'shape', 'message'),
    [
        ('u', (2, 15), 'u must have 3 dimensions'),
        ('A', (15, 4, 1), 'A must have 2 dimensions'),
        ('B', (2, 4, 37), 'B must have 4 dimensions'),
        ('B', (2, 4, 4, 37), 'split evenly into the 4 groups'),
        ('C', (2, 3, 4, 36), r'C must have shape \(2, 3, 4, 37\)'),
        ('delta', (2, 14, 37), r'delta must have shape \(2, 15, 37\)'),
        ('D', (5,), r'D must have shape \(15,\)'),
        ('delta_bias', (15, 1), r'delta_bias must have shape \(15,\)'),
    ],
)
def test_wrong_shape_is_named(name, shape, message):
    arguments = scan_arguments() | {name: torch.zeros(shape).double()}
    with pytest.raises(ValueError, match=message):
        selective_scan(**arguments)


@pytest.mark.parametrize('dtype', [torch.int64, torch.complex64], ids=str)
def test_wrong_dtype_is_named(dtype):
    arguments = scan_arguments()
    arguments['A'] = arguments['A'].to(dtype)
    with pytest.raises(ValueError, match=f'A must have.*{dtype}'):
        selective_scan(**arguments)


def test_mixed_devices_are_named():
    arguments = scan_arguments()
    arguments['C'] = arguments['C'].to('meta')
    with pytest.raises(ValueError, match='u is on cpu, C on meta'):
        selective_scan(**arguments)
