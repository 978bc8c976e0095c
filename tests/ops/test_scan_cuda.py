"""The fused CUDA scan against the naive one in fp64.

Without a GPU nothing here can run: the kernels are CUDA C++.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evmamba_mm.ops import atrous_merge, atrous_scan, cross_merge, cross_scan
from evmamba_mm.ops.atrous import atrous_parameter_sets
from evmamba_mm.ops.scan_cuda import host, proj_columns, scan2d_cuda, variant
from evmamba_mm.ops.scan_naive import scan_naive

from .scan_cases import relative_error, value_and_gradients

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='the kernels need a GPU'
)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = ('u', 'proj', 'dt_weight', 'dt_bias', 'A_logs', 'Ds')


def arguments(
    size, channels, states, rank, sets, cross, dtype, batch=2, scale=1.0
):
    """Fp64 numbers on the CPU that the kernel's dtypes hold exactly."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, kind=torch.float32):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(kind).double()

    columns = (4 if cross else 1) * proj_columns(states, rank)
    return dict(
        u=normal(batch, *size, channels, kind=dtype),
        proj=(normal(batch, *size, columns) * scale).to(dtype).double(),
        dt_weight=normal(sets, channels, rank),
        dt_bias=normal(sets, channels) - 2,
        A_logs=normal(sets * channels, states),
        Ds=normal(sets * channels),
    )


def reference(step, cross):
    """The naive scan of the sequences that other functions lay out."""

    def scan(u, proj, dt_weight, dt_bias, A_logs, Ds):
        height, width, channels = u.shape[1:]
        rank, states = dt_weight.shape[2], A_logs.shape[1]
        if cross:
            sets = [0, 1, 2, 3]
            xs = cross_scan(u)
            blocks = proj.unflatten(-1, (4, -1)).unbind(-2)
            rows = [cross_scan(b)[:, k] for k, b in enumerate(blocks)]
            projected = torch.stack(rows, dim=1)
        else:
            sets = atrous_parameter_sets(step)
            xs, projected = atrous_scan(u, step), atrous_scan(proj, step)
        B, C, dt, _ = projected.split(
            [states, states, rank, projected.shape[2] - 2 * states - rank],
            dim=2,
        )
        by_set = [x.unflatten(0, (-1, channels)) for x in (A_logs, Ds)]
        A, skip = (x[sets].flatten(0, 1) for x in by_set)
        y = scan_naive(
            xs.flatten(1, 2),
            torch.einsum('bgrl,gdr->bgdl', dt, dt_weight[sets]).flatten(1, 2),
            -A.exp(),
            B,
            C,
            skip,
            dt_bias[sets].flatten(),
            True,
        ).view_as(xs)
        if cross:
            return cross_merge(y, height, width)
        return atrous_merge(y, height, width, step)

    return scan


def on_gpu(values, dtype):
    streams = ('u', 'proj')
    return {
        k: v.to('cuda', dtype if k in streams else torch.float32)
        for k, v in values.items()
    }


def check(values, step, cross, dtype, tolerance=None):
    """Value and every gradient, on memory that held NaN before."""
    tolerance = tolerance or TOLERANCE[dtype]
    expected = value_and_gradients(reference(step, cross), values)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        actual = value_and_gradients(
            lambda **kw: scan2d_cuda(**kw, step_size=step, cross=cross),
            on_gpu(values, dtype),
        )
    finally:
        torch.use_deterministic_algorithms(False)
    errors = {'y': relative_error(actual[0], expected[0])}
    for name in values:
        errors[name] = relative_error(actual[1][name], expected[1][name])
    assert all(e < tolerance for e in errors.values()), errors


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(
    ('step', 'cross'),
    [(1, False), (2, False), (3, False), (4, False), (1, True)],
    ids=['step1', 'step2', 'step3', 'step4', 'cross'],
)
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5), (55, 37)], ids=str)
def test_equals_naive_on_any_map(size, step, cross, dtype):
    sets = 4 if cross else min(4, step**2)
    values = arguments(size, 40, 16, 3, sets, cross, dtype)
    check(values, step, cross, dtype)


@pytest.mark.parametrize(
    ('channels', 'states', 'rank'),
    [
        (1, 1, 1),
        (5, 2, 1),
        (33, 3, 2),
        (48, 4, 2),
        (96, 5, 3),
        (100, 8, 7),
        (192, 16, 6),
        (200, 16, 5),
        (130, 24, 4),
        (384, 16, 12),
        (70, 32, 3),
        (20, 64, 2),
        (9, 128, 24),
    ],
    ids=str,
)
def test_equals_naive_for_any_width(channels, states, rank):
    values = arguments(
        (11, 9), channels, states, rank, 4, False, torch.float32
    )
    check(values, 2, False, torch.float32)


def test_one_chunk_equals_naive_too(monkeypatch):
    monkeypatch.setattr(variant, '_WORTH_CHUNKS', 10**9)
    values = arguments((55, 37), 40, 16, 3, 4, True, torch.float32)
    # Plans of the same sizes are kept, and must not be afterwards.
    host._plan_call.cache_clear()
    try:
        check(values, 1, True, torch.float32)
    finally:
        host._plan_call.cache_clear()


@pytest.mark.parametrize('shift', [-30.0, 0.0, 30.0])
@pytest.mark.parametrize('decay', [-20.0, 0.0, 8.0])
def test_large_magnitudes(shift, decay):
    """Steps from 1e-13 to 30, decays whose exp under- and overflows."""
    values = arguments((20, 21), 16, 16, 2, 4, False, torch.float32, scale=3)
    values['dt_bias'] += shift
    values['A_logs'] += decay
    # Decays of nearly one add up hundreds of steps that nearly cancel.
    check(values, 2, False, torch.float32, tolerance=1e-4)


def test_inputs_need_not_be_contiguous():
    values = on_gpu(
        arguments((6, 7), 24, 16, 3, 4, False, torch.float32), torch.float32
    )
    expected = scan2d_cuda(**values, step_size=2, cross=False)
    for name, x in values.items():
        strided = x.unsqueeze(0).repeat(2, *[1] * x.dim()).movedim(0, -1)
        values[name] = strided[..., 0]
    actual = scan2d_cuda(**values, step_size=2, cross=False)
    assert torch.equal(actual, expected)


def test_an_empty_batch_gives_an_empty_map_and_zero_gradients():
    values = arguments((4, 4), 8, 4, 1, 4, False, torch.float32, batch=0)
    y, gradients = value_and_gradients(
        lambda **kw: scan2d_cuda(**kw, step_size=2, cross=False),
        on_gpu(values, torch.float32),
    )
    assert y.shape == (0, 4, 4, 8)
    for name in ('dt_weight', 'dt_bias', 'A_logs', 'Ds'):
        assert not gradients[name].any()


def test_two_runs_are_bitwise_equal():
    values = arguments((31, 29), 96, 16, 3, 4, False, torch.bfloat16)
    runs = [
        value_and_gradients(
            lambda **kw: scan2d_cuda(**kw, step_size=2, cross=False),
            on_gpu(values, torch.bfloat16),
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    for name in NAMES:
        assert torch.equal(runs[0][1][name], runs[1][1][name]), name


def test_a_captured_graph_gives_what_eager_gives():
    values = on_gpu(
        arguments((33, 30), 48, 16, 3, 4, False, torch.float32), torch.float32
    )
    leaves = {k: v.requires_grad_() for k, v in values.items()}

    def step():
        y = scan2d_cuda(**leaves, step_size=2, cross=False)
        return y, *torch.autograd.grad(y.square().sum(), leaves.values())

    # Everything on one side stream, as captures ask for.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x in captured:
        x.detach().fill_(float('nan'))
    graph.replay()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a, b)


def test_compiles_as_one_graph():
    values = on_gpu(
        arguments((12, 10), 32, 16, 2, 4, False, torch.float32), torch.float32
    )

    def scan(**kw):
        return scan2d_cuda(**kw, step_size=2, cross=False) * 0.5

    expected = value_and_gradients(scan, values)
    actual = value_and_gradients(torch.compile(scan, fullgraph=True), values)
    assert relative_error(actual[0], expected[0]) < 1e-6
    for name in NAMES:
        assert relative_error(actual[1][name], expected[1][name]) < 1e-6


def test_runs_in_a_thread_that_has_used_no_gpu():
    values = on_gpu(
        arguments((6, 5), 32, 16, 2, 4, False, torch.float32), torch.float32
    )

    def scan():
        with torch.no_grad():
            return scan2d_cuda(**values, step_size=2, cross=False)

    expected = scan()
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(scan).result(), expected)


@pytest.mark.parametrize('cross', [False, True])
def test_torch_accepts_the_operation(cross):
    values = arguments((5, 6), 8, 4, 1, 4, cross, torch.float32)
    tensors = [
        v.requires_grad_() for v in on_gpu(values, torch.float32).values()
    ]
    step = 1 if cross else 2
    torch.library.opcheck(
        torch.ops.evmamba_mm.scan2d_cuda.default, (*tensors, step, cross, True)
    )


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason='needs two GPUs in one machine'
)
def test_runs_on_a_device_that_is_not_the_current_one():
    values = arguments((13, 12), 32, 16, 2, 4, False, torch.float32)
    first = on_gpu(values, torch.float32)
    second = {k: v.to('cuda:1') for k, v in first.items()}
    expected = value_and_gradients(
        lambda **kw: scan2d_cuda(**kw, step_size=2, cross=False), first
    )
    actual = value_and_gradients(
        lambda **kw: scan2d_cuda(**kw, step_size=2, cross=False), second
    )
    assert torch.equal(actual[0].cpu(), expected[0].cpu())
    for name in NAMES:
        assert torch.equal(actual[1][name].cpu(), expected[1][name].cpu())
