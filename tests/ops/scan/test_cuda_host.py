"""The Python around the CUDA kernels, with stand-ins for them on a CPU."""

import contextlib
import ctypes
import functools
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from evmamba_mm.ops import AtrousGroups, CrossDirections, es2d_scan, ss2d_scan
from evmamba_mm.ops.scan import map_scan
from evmamba_mm.ops.scan.cuda import (
    compiler,
    host,
    op,
    proj_columns,
    projection,
    variant,
)

from .scan_cases import map_parameters, relative_error, value_and_gradients
from .test_cuda_kernels import reference

D, N, R = 4, 3, 2
CROSS = CrossDirections()
SCANS = {
    'es2d-1': (es2d_scan, 1, dict(step_size=1)),
    'es2d-2': (es2d_scan, 4, dict(step_size=2)),
    'es2d-3': (es2d_scan, 4, dict(step_size=3)),
    'ss2d': (ss2d_scan, 4, {}),
}


def run_forward(*arguments):
    """A naive scan of projected cells in place of the kernels'."""
    *tensors, geometry, save = arguments
    y = reference(geometry)(*tensors)
    return y, y.new_zeros(7) if save else None


def run_backward(dy, *arguments):
    """Its gradients, by torch."""
    *tensors, saved, geometry = arguments
    leaves = [x.detach().requires_grad_() for x in tensors]
    with torch.enable_grad():
        y = reference(geometry)(*leaves)
    return torch.autograd.grad(y, leaves, dy)


class OnCpu(torch.autograd.Function):
    """An op without the dispatcher, which would ask for a GPU."""

    @staticmethod
    def forward(ctx, forward, gradients, count, *arguments):
        ctx.gradients, ctx.numbers = gradients, arguments[count:-1]
        y, *kept = forward(*arguments)
        ctx.save_for_backward(*arguments[:count], *kept)
        return y

    @staticmethod
    def backward(ctx, dy):
        gradients = ctx.gradients(dy, *ctx.saved_tensors, *ctx.numbers)
        return None, None, None, *gradients, *(None for _ in ctx.numbers), None


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets backend 'cuda' run on a CPU, with the naive scan as kernel."""

    def es2d(*arguments):
        return (
            OnCpu.apply(op._es2d_forward, op._es2d_gradients, 6, *arguments),
        )

    def ss2d(*arguments):
        return (
            OnCpu.apply(op._ss2d_forward, op._ss2d_gradients, 6, *arguments),
        )

    choose = map_scan.choose_map_backend
    monkeypatch.setattr(
        map_scan,
        'choose_map_backend',
        lambda name, *rest: name if name == 'cuda' else choose(name, *rest),
    )
    monkeypatch.setattr(op, 'on_device', lambda _: contextlib.nullcontext())
    monkeypatch.setattr(op, 'run_forward', run_forward)
    monkeypatch.setattr(op, 'run_backward', run_backward)
    # The kernels read fp32; the reference is exact.
    monkeypatch.setattr(op, 'as_parameter', lambda x: x)
    monkeypatch.setattr(op, '_es2d', es2d)
    monkeypatch.setattr(op, '_ss2d', ss2d)


@pytest.mark.parametrize('scan, sets, options', SCANS.values(), ids=SCANS)
@pytest.mark.parametrize('size', [(1, 1), (5, 6)], ids=str)
def test_projection_and_scan_equal_naive(size, scan, sets, options, on_cpu):
    values = dict(
        x=torch.randn(2, *size, D).double(),
        **map_parameters(sets, torch.float64),
    )
    expected, actual = (
        value_and_gradients(
            functools.partial(scan, **options, backend=backend), values
        )
        for backend in ('naive', 'cuda')
    )
    assert relative_error(actual[0], expected[0]) < 1e-12
    for name in values:
        assert relative_error(actual[1][name], expected[1][name]) < 1e-12, name


@pytest.mark.parametrize(
    'states, rank, fits',
    [(128, 112, True), (129, 3, False), (128, 113, False), (16, 225, False)],
)
def test_larger_numbers_are_left_to_others(states, rank, fits, monkeypatch):
    asked = []
    monkeypatch.setattr(
        map_scan,
        'choose_map_backend',
        lambda *arguments: asked.append(arguments) or 'naive',
    )
    es2d_scan(
        torch.randn(1, 2, 2, 4),
        torch.randn(4, rank + 2 * states, 4),
        torch.randn(4, 4, rank),
        torch.randn(4, 4),
        torch.randn(16, states),
        torch.randn(16),
    )
    assert asked[0][3] == fits


@pytest.mark.parametrize('step', [1, 2, 3, 4])
@pytest.mark.parametrize('size', [(1, 1), (7, 5)], ids=str)
@pytest.mark.skipif(torch.cuda.is_available(), reason='interprets a kernel')
def test_triton_and_torch_project_alike(size, step, monkeypatch):
    group_linear = pytest.importorskip('evmamba_mm.ops.triton.group_linear')
    weight = torch.randn(min(4, step**2), R + 2 * N, 5) / 3
    u, du_init = torch.randn(2, *size, 5), torch.randn(2, *size, 5)
    columns = proj_columns(N, R)
    dproj = torch.randn(2, *size, columns)
    results = []
    for kernels in (None, group_linear):
        monkeypatch.setattr(projection, '_kernels', lambda *_, k=kernels: k)
        results.append(
            (
                projection.project_forward(u, weight, R, step),
                *projection.project_backward(
                    dproj, u, weight, R, step, du_init
                ),
            )
        )
    assert results[0][0].shape == (2, *size, columns)
    assert results[0][2].shape == weight.shape
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize('save', [True, False])
@pytest.mark.parametrize('scan, sets, options', SCANS.values(), ids=SCANS)
def test_ops_tell_their_shapes(scan, sets, options, save):
    """Through the fake kernels, on a GPU that is not there."""
    with FakeTensorMode(), torch.set_grad_enabled(save):
        x = torch.zeros(2, 5, 7, D, dtype=torch.half, device='cuda:0')
        p = [
            v.to('cuda:0').requires_grad_()
            for v in map_parameters(sets).values()
        ]
        y = scan(x, *p, **options, backend='cuda')
    assert (y.shape, y.dtype, y.requires_grad) == (x.shape, x.dtype, save)


@pytest.mark.parametrize('step', [1, 2, 3])
def test_backward_ops_tell_their_shapes(step):
    ops = torch.ops.evmamba_mm
    with FakeTensorMode():
        u = torch.zeros(2, 5, 7, D, dtype=torch.half, device='cuda:0')
        p = map_parameters(min(4, step**2), device='cuda:0').values()
        y, proj, saved = ops.es2d_scan_cuda(u, *p, step, True)
        results = ops.es2d_scan_cuda_backward(y, u, *p, proj, saved, step)
        p = list(map_parameters(4, device='cuda:0').values())[1:]
        cross = (u, u.new_empty(2, 5, 7, 4 * proj_columns(N, R)), *p)
        y, saved = ops.ss2d_scan_cuda(*cross, True)
        cross_results = ops.ss2d_scan_cuda_backward(y, *cross, saved)
    p = map_parameters(min(4, step**2)).values()
    assert proj.shape == (2, 5, 7, proj_columns(N, R))
    for given, result in (((u, *p), results), (cross, cross_results)):
        for x, gradient in zip(given, result, strict=True):
            assert (gradient.shape, gradient.dtype) == (x.shape, x.dtype)


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


def forward_tensors(size, dtype=torch.float32, sets=4, blocks=1):
    columns = proj_columns(16, 3)
    return (
        torch.zeros(*size, 48, dtype=dtype),
        torch.zeros(*size, blocks * columns, dtype=dtype),
        torch.zeros(sets, 48, 3),
        torch.zeros(sets, 48),
        torch.zeros(sets * 48, 16),
        torch.zeros(sets * 48),
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
        y, saved = host.run_forward(*tensors, AtrousGroups(), False)
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


def test_the_directions_have_a_block_of_columns_and_a_map_each(launches):
    tensors = forward_tensors((2, 6, 7), blocks=4)
    y, _ = host.run_forward(*tensors, CROSS, False)
    assert y.shape == (2, 6, 7, 48)
    _, blocks, _, geometry, numbers = launches[1][-1]
    assert blocks == 2 * 4
    assert geometry[:5] == [6, 7, 1, 1, 4]
    columns = proj_columns(16, 3)
    assert numbers[9:] == [4 * columns, columns, y.numel()]


@pytest.mark.parametrize(
    ('geometry', 'sets'),
    [
        (AtrousGroups(1), 4),
        (AtrousGroups(2), 1),
        (AtrousGroups(3), 9),
        (CROSS, 5),
        (CrossDirections(('rows',) * 5), 5),
        (CrossDirections(('rows',) * 4), 4),
    ],
    ids=str,
)
def test_the_host_refuses_what_the_kernels_would_drop(
    geometry, sets, launches
):
    tensors = forward_tensors((2, 6, 7), sets=sets, blocks=sets)
    with pytest.raises(ValueError, match=f'got .* and {sets} parameter sets'):
        host.run_forward(*tensors, geometry, False)
    assert not launches[1]


@pytest.mark.parametrize(
    'geometry', [AtrousGroups(1), AtrousGroups(2), AtrousGroups(3), CROSS]
)
def test_gradients_own_their_memory_and_have_their_shapes(geometry, launches):
    sets = geometry.sets
    tensors = forward_tensors(
        (2, 6, 7), sets=sets, blocks=sets if geometry == CROSS else 1
    )
    saved = host.run_forward(*tensors, geometry, True)[1]
    gradients = host.run_backward(tensors[0], *tensors, saved, geometry)
    assert launches[1][-1][0] == 'scan_backward'
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.dtype == tensor.dtype
        assert gradient.is_contiguous()
    assert len({x.untyped_storage().data_ptr() for x in gradients}) == 6


def test_states_are_kept_if_requested(launches):
    tensors = forward_tensors((2, 6, 7))
    saved = host.run_forward(*tensors, AtrousGroups(), True)[1]
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
