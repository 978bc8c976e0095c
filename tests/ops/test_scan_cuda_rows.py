"""What surrounds the CUDA kernels, with stand-ins for them on a CPU."""

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
import torch

from evmamba_mm.ops import es2d_scan, scan2d, ss2d_scan
from evmamba_mm.ops.scan_cuda import (
    compiler,
    es2d,
    host,
    kernel_rows,
    proj_columns,
    variant,
)

from .scan_cases import relative_error
from .test_scan2d import D, N, parameters
from .test_scan_cuda import reference

R = 2


@pytest.fixture
def scanned(monkeypatch):
    """A naive scan of projected rows in place of the kernels'."""

    def run_forward(u, proj, *arguments):
        *tensors, step, cross, save = arguments
        assert not save
        tensors = [x.double() for x in tensors]
        return reference(step, cross)(u, proj, *tensors), None

    def scan2d_cuda(u, proj, *arguments, cross):
        *tensors, step = arguments
        return reference(step, cross)(u, proj, *tensors)

    monkeypatch.setattr(es2d, 'run_forward', run_forward)
    monkeypatch.setattr(es2d, 'on_device', lambda _: contextlib.nullcontext())
    monkeypatch.setattr(scan2d, 'scan2d_cuda', scan2d_cuda)
    choose = scan2d._choose
    monkeypatch.setattr(
        scan2d,
        '_choose',
        lambda x, p, name: name if name == 'cuda' else choose(x, p, name),
    )


SCANS = {
    'es2d-1': (es2d_scan, 1, dict(step_size=1)),
    'es2d-2': (es2d_scan, 4, dict(step_size=2)),
    'es2d-3': (es2d_scan, 4, dict(step_size=3)),
    'ss2d': (ss2d_scan, 4, {}),
}


@pytest.mark.parametrize('scan, sets, options', SCANS.values(), ids=SCANS)
@torch.no_grad()
def test_ready_rows_give_what_the_weight_gives(scan, sets, options, scanned):
    p, x = parameters(sets), torch.randn(2, 5, 6, D).double()
    expected = scan(x, **p, **options, backend='naive')
    rows = kernel_rows(p['x_proj_weight'], N)
    for given in (None, rows):
        y = scan(x, **p, **options, backend='cuda', rows=given)
        # The parameters of the kernels are in fp32.
        assert relative_error(y, expected) < 1e-5
    y = scan(x, **p, **options, backend='cuda', rows=2 * rows)
    assert relative_error(y, expected) > 1e-2
    with pytest.raises(ValueError, match='rows must have shape'):
        scan(x, **p, **options, backend='cuda', rows=rows[:, 1:])


@pytest.mark.parametrize('scan, sets, options', SCANS.values(), ids=SCANS)
@pytest.mark.parametrize('why', ['backend', 'dtype', 'gradients'])
def test_rows_that_do_not_serve_are_not_read(
    why, scan, sets, options, scanned
):
    p, x = parameters(sets), torch.randn(2, 5, 6, D).double()
    rows = torch.full((sets, proj_columns(N, R), D), torch.nan).to(x.dtype)
    rows = rows.half() if why == 'dtype' else rows
    backend = 'naive' if why == 'backend' else 'cuda'
    with torch.set_grad_enabled(why == 'gradients'):
        y = scan(x, **p, **options, backend=backend, rows=rows)
    expected = scan(x, **p, **options, backend='naive')
    assert relative_error(y, expected) < 1e-5


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='the kernels need a GPU'
)
@pytest.mark.parametrize('scan, sets, options', SCANS.values(), ids=SCANS)
@torch.no_grad()
def test_ready_rows_on_a_gpu(scan, sets, options):
    p = parameters(sets, torch.float32)
    p = {name: value.cuda() for name, value in p.items()}
    x = torch.randn(2, 9, 11, D).bfloat16().cuda()
    rows = kernel_rows(p['x_proj_weight'], N).bfloat16()
    expected = scan(x, **p, **options, backend='cuda')
    y = scan(x, **p, **options, backend='cuda', rows=rows)
    assert relative_error(y, expected) < 1e-2


@pytest.fixture
def launches(monkeypatch):
    """Kernels that were loaded, and what each launch was given."""
    loaded, launched = [], []

    def load_kernel(*arguments):
        loaded.append(arguments)
        return arguments

    def launch(kernel, blocks, threads, shared_bytes, arguments):
        numbers = [list(x) for x in arguments[:2]]
        launched.append((kernel[1], blocks, threads, *numbers))

    monkeypatch.setattr(host, 'load_kernel', load_kernel)
    monkeypatch.setattr(host, 'launch', launch)
    monkeypatch.setattr(host, 'shared_memory', lambda _: 232448)
    monkeypatch.setattr(variant, '_multiprocessors', lambda _: 132)
    host._plan_call.cache_clear()
    yield loaded, launched
    host._plan_call.cache_clear()


def forward_tensors(size, dtype=torch.float32):
    columns = proj_columns(16, 3)
    return (
        torch.zeros(*size, 48, dtype=dtype),
        torch.zeros(*size, columns, dtype=dtype),
        torch.zeros(4, 48, 3),
        torch.zeros(4, 48),
        torch.zeros(4 * 48, 16),
        torch.zeros(4 * 48),
    )


def test_a_plan_is_kept_and_the_tensors_are_not(launches):
    loaded, launched = launches
    for size, dtype in (
        ((2, 6, 7), torch.float32),
        ((2, 6, 7), torch.float32),
        ((2, 6, 9), torch.float32),
        ((2, 6, 7), torch.bfloat16),
    ):
        tensors = forward_tensors(size, dtype)
        y, saved = host.run_forward(*tensors, 2, False, False)
        assert saved is None
        name, blocks, _, geometry, numbers = launched[-1]
        assert name == 'scan_forward'
        assert blocks == 2 * 4
        assert geometry[:5] == [*size[1:], 2, 0, 4]
        addresses = [x.data_ptr() for x in (*tensors, y)]
        assert numbers[:9] == [*addresses, 0, 0]
        assert numbers[9:] == [proj_columns(16, 3), 0, 0]
    # One for each of the three plans.
    assert len(loaded) == len(set(map(id, loaded))) == 3
    assert dict(loaded[0][2])['DTYPE'] != dict(loaded[-1][2])['DTYPE']


def test_states_are_kept_where_asked_for(launches):
    tensors = forward_tensors((2, 6, 7))
    saved = host.run_forward(*tensors, 2, False, True)[1]
    assert saved.shape == (8, 1, 48, 16)
    assert launches[1][-1][-1][8] == saved.data_ptr()


@pytest.mark.parametrize('raw', [True, False], ids=['raw', 'public'])
def test_a_launch_passes_its_arguments_on(raw, monkeypatch):
    passed = []

    def launch(kernel, *rest):
        *sizes, shared, stream, pointers, extra = rest
        places = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
        number = ctypes.cast(places[1], ctypes.POINTER(ctypes.c_int64))
        passed.append((kernel, sizes, shared, stream, number[0], extra))
        return (0,)

    driver = SimpleNamespace(
        cuCtxGetCurrent=lambda: (0, 1), cuLaunchKernel=launch
    )
    monkeypatch.setattr(compiler, '_bindings', lambda: (driver, None))
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 3)
    name = '_cuda_getCurrentRawStream'
    if raw:
        monkeypatch.setattr(
            torch._C, name, lambda device: 10 + device, raising=False
        )
    else:
        monkeypatch.delattr(torch._C, name, raising=False)
        monkeypatch.setattr(
            torch.cuda,
            'current_stream',
            lambda device: SimpleNamespace(cuda_stream=10 + device),
        )
    arguments = (ctypes.c_int32(5), ctypes.c_int64(2**40))
    compiler.launch('kernel', 6, 64, 128, arguments)
    sizes = [6, 1, 1, 64, 1, 1]
    assert passed == [('kernel', sizes, 128, 13, 2**40, 0)]


def test_the_device_is_switched_only_to_another(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    here, there = (compiler.on_device(torch.device('cuda', i)) for i in (1, 0))
    assert isinstance(here, contextlib.nullcontext)
    assert isinstance(there, torch.cuda.device)
    assert there.idx == 0


def test_parameters_are_copied_only_where_they_must_be():
    x = torch.zeros(3, 4)
    assert host.as_parameter(x) is x
    for other in (x.half(), x.double(), x.mT):
        y = host.as_parameter(other)
        assert y.dtype == torch.float32
        assert y.is_contiguous()
