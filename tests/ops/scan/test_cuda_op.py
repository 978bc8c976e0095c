"""The ops of the fused CUDA scan against the naive scan in fp64.

Without a GPU nothing here can run: the kernels are CUDA C++.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from evmamba_mm.ops import es2d_scan, ss2d_scan
from evmamba_mm.ops.scan.cuda import host, proj_columns, projection

from .scan_cases import map_parameters, relative_error, value_and_gradients

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='the kernels need a GPU'
)

# The ops round the projected cells, which the reference does not.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def weights(sets, dtype, channels=40, states=16, rank=3):
    """Map parameters whose projection ``dtype`` represents exactly."""
    p = map_parameters(
        sets, channels=channels, states=states, rank=rank, device='cuda'
    )
    p['x_proj_weight'] = p['x_proj_weight'].to(dtype).float()
    p['dt_projs_bias'] -= 2
    return p


def feature_map(size, dtype, channels=40, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *size, channels, generator=generator)
    return x.to('cuda', dtype)


def es2d(step):
    def scan(x, **p):
        return es2d_scan(x, **p, step_size=step, backend='cuda')

    return scan


SCANS = {f'es2d-{step}': es2d(step) for step in (1, 2, 3, 4)}
SCANS['ss2d'] = lambda x, **p: ss2d_scan(x, **p, backend='cuda')
SETS = {name: 1 if name == 'es2d-1' else 4 for name in SCANS}


def naive(name):
    """The reference of :data:`SCANS`, in the dtype of its arguments."""

    def scan(x, **p):
        if name == 'ss2d':
            return ss2d_scan(x, **p, backend='naive')
        return es2d_scan(x, **p, step_size=int(name[-1]), backend='naive')

    return scan


def assert_close(actual, expected, tolerance):
    errors = {'y': relative_error(actual[0], expected[0])}
    for name, gradient in expected[1].items():
        errors[name] = relative_error(actual[1][name], gradient)
    assert all(e <= tolerance for e in errors.values()), errors


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('name', SCANS)
@pytest.mark.parametrize('size', [(1, 1), (3, 1), (13, 5), (31, 18)], ids=str)
def test_ops_equal_naive(size, name, dtype):
    values = dict(x=feature_map(size, dtype), **weights(SETS[name], dtype))
    exact = {k: v.double().cpu() for k, v in values.items()}
    expected = value_and_gradients(naive(name), exact)
    actual = value_and_gradients(SCANS[name], values)
    assert actual[0].dtype == dtype
    assert_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize('name', SCANS)
def test_ops_equal_naive_without_triton(name, monkeypatch):
    monkeypatch.setattr(projection, 'triton_installed', lambda: False)
    monkeypatch.setattr(host, 'triton_installed', lambda: False)
    test_ops_equal_naive((13, 5), name, torch.float32)


def test_a_projection_too_wide_for_triton():
    dtype = torch.float32
    values = dict(
        x=feature_map((7, 5), dtype, 24),
        **weights(4, dtype, channels=24, states=120, rank=30),
    )
    exact = {k: v.double().cpu() for k, v in values.items()}
    expected = value_and_gradients(naive('es2d-2'), exact)
    actual = value_and_gradients(SCANS['es2d-2'], values)
    assert_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize('name', SCANS)
def test_without_gradients_the_output_is_the_same(name):
    dtype = torch.bfloat16
    p, x = weights(SETS[name], dtype), feature_map((9, 11), dtype)
    expected = SCANS[name](x.requires_grad_(), **p).detach()
    with torch.no_grad():
        assert torch.equal(SCANS[name](x, **p), expected)


@pytest.mark.parametrize('name', SCANS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_neither_dtype_nor_much(name, dtype):
    p, x = weights(SETS[name], dtype), feature_map((9, 11), dtype)
    expected = value_and_gradients(SCANS[name], dict(x=x, **p))
    with torch.autocast('cuda', dtype=torch.bfloat16):
        actual = value_and_gradients(SCANS[name], dict(x=x, **p))
    assert actual[0].dtype == dtype
    assert_close(actual, expected, 2e-2)


def test_inputs_need_not_be_contiguous():
    dtype = torch.float32
    for name, scan in SCANS.items():
        values = dict(
            x=feature_map((6, 7), dtype), **weights(SETS[name], dtype)
        )
        expected = scan(**values)
        for key, x in values.items():
            strided = x.unsqueeze(0).repeat(2, *[1] * x.dim()).movedim(0, -1)
            values[key] = strided[..., 0]
        assert torch.equal(scan(**values), expected)


@pytest.mark.parametrize('name', SCANS)
def test_an_empty_batch_gives_an_empty_map_and_zero_gradients(name):
    values = weights(SETS[name], torch.float32)
    x = feature_map((4, 4), torch.float32, batch=0)
    y, gradients = value_and_gradients(SCANS[name], dict(x=x, **values))
    assert y.shape == (0, 4, 4, 40)
    assert not any(gradients[key].any() for key in values)


@pytest.mark.parametrize('name', SCANS)
def test_two_runs_are_bitwise_equal(name):
    dtype = torch.bfloat16
    values = dict(x=feature_map((31, 29), dtype), **weights(SETS[name], dtype))
    first, second = (value_and_gradients(SCANS[name], values) for _ in '12')
    assert torch.equal(first[0], second[0])
    for key in values:
        assert torch.equal(first[1][key], second[1][key]), key


def test_two_scans_in_one_graph_add_their_gradients():
    """As in two blocks that share parameters, each with its own states."""
    dtype = torch.float32
    values = dict(x=feature_map((9, 7), dtype), **weights(4, dtype))
    exact = {k: v.double().cpu() for k, v in values.items()}

    def twice(scan):
        return lambda x, **p: scan(scan(x, **p) * 0.1, **p)

    expected = value_and_gradients(twice(naive('es2d-2')), exact)
    actual = value_and_gradients(twice(SCANS['es2d-2']), values)
    assert_close(actual, expected, 1e-4)


def test_a_graph_kept_for_a_second_backward_gives_the_same():
    p, x = weights(4, torch.float32), feature_map((9, 7), torch.float32)
    leaves = [v.requires_grad_() for v in (x, *p.values())]
    loss = SCANS['es2d-2'](x, **p).square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('name', SCANS)
def test_a_captured_graph_gives_what_eager_gives(name):
    p, x = (
        weights(SETS[name], torch.float32),
        feature_map((33, 30), torch.half),
    )
    leaves = [v.requires_grad_() for v in (x, *p.values())]

    def step():
        y = SCANS[name](x, **p)
        # A sum would overflow in half precision.
        loss = y.float().square().mean()
        return y, *torch.autograd.grad(loss, leaves)

    # Everything on one side stream, as captures ask for.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for value in captured:
        value.detach().fill_(float('nan'))
    graph.replay()
    # A capture has another workspace of cuBLAS, and so other algorithms.
    for a, b in zip(captured, expected, strict=True):
        assert relative_error(a, b) < 1e-3


@pytest.mark.parametrize('name', SCANS)
def test_compiles_as_one_graph(name):
    dtype = torch.float32
    values = dict(x=feature_map((12, 10), dtype), **weights(SETS[name], dtype))

    def scan(**kw):
        return SCANS[name](**kw) * 0.5

    expected = value_and_gradients(scan, values)
    torch._dynamo.reset()
    actual = value_and_gradients(torch.compile(scan, fullgraph=True), values)
    assert_close(actual, expected, 1e-5)


def test_compiles_for_any_size():
    torch._dynamo.reset()
    compiled = torch.compile(SCANS['es2d-2'], fullgraph=True, dynamic=True)
    for batch, size in ((2, (12, 10)), (3, (7, 9)), (2, (33, 30))):
        x = feature_map(size, torch.float32, batch=batch)
        values = dict(x=x, **weights(4, torch.float32))
        expected = value_and_gradients(SCANS['es2d-2'], values)
        assert_close(value_and_gradients(compiled, values), expected, 1e-5)


def test_runs_in_a_thread_that_has_used_no_gpu():
    p, x = weights(4, torch.float32), feature_map((6, 5), torch.float32)

    def scan():
        with torch.no_grad():
            return SCANS['es2d-2'](x, **p)

    expected = scan()
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(scan).result(), expected)


@pytest.mark.parametrize('save', [True, False])
def test_torch_accepts_the_operations(save):
    ops = torch.ops.evmamba_mm
    p, x = (
        weights(4, torch.float32, 8, 4, 1),
        feature_map((5, 6), torch.half, 8),
    )
    x_proj, *others = (v.requires_grad_(save) for v in p.values())
    torch.library.opcheck(
        ops.es2d_scan_cuda.default, (x, x_proj, *others, 2, save)
    )
    proj = feature_map((5, 6), torch.half, 4 * proj_columns(4, 1))
    torch.library.opcheck(ops.ss2d_scan_cuda.default, (x, proj, *others, save))


def test_second_derivatives_are_an_error():
    p, x = weights(4, torch.float32), feature_map((5, 6), torch.float32)
    y = SCANS['es2d-2'](x.requires_grad_(), **p)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='no autograd formula'):
        torch.autograd.grad(dx.sum(), x)


def test_forward_mode_takes_the_naive_scan():
    p, x = weights(4, torch.float32), feature_map((3, 5), torch.float32)
    exact = {k: v.double().cpu() for k, v in p.items()}

    def jvp(scan, x, p):
        return torch.func.jvp(lambda x: scan(x, **p), (x,), (x.cos(),))[1]

    expected = jvp(naive('es2d-2'), x.double().cpu(), exact)
    assert relative_error(jvp(es2d_scan, x, p), expected) < 1e-4
    with pytest.raises(ValueError, match='no derivative for torch.func.jvp'):
        jvp(SCANS['es2d-2'], x, p)


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason='needs two GPUs in one machine'
)
def test_runs_on_a_device_that_is_not_the_current_one():
    dtype = torch.float32
    first = dict(x=feature_map((13, 12), dtype), **weights(4, dtype))
    second = {k: v.to('cuda:1') for k, v in first.items()}
    expected = value_and_gradients(SCANS['es2d-2'], first)
    actual = value_and_gradients(SCANS['es2d-2'], second)
    assert torch.equal(actual[0].cpu(), expected[0].cpu())
    for key in first:
        assert torch.equal(actual[1][key].cpu(), expected[1][key].cpu())
