"""The kernels of the fused CUDA scan against the naive scan in fp64.

Without a GPU nothing here can run: the kernels are CUDA C++.
"""

import pytest
import torch

from evmamba_mm.ops import AtrousGroups, CrossDirections, cross_scan
from evmamba_mm.ops.scan.cuda import compiler, host, proj_columns, variant
from evmamba_mm.ops.scan.naive import scan_naive

from .scan_cases import relative_error, value_and_gradients

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='the kernels need a GPU'
)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CROSS = CrossDirections()


class HostScan(torch.autograd.Function):
    """The kernels alone, on projected cells that are given."""

    @staticmethod
    def forward(ctx, u, proj, dt_weight, dt_bias, A_logs, Ds, geometry):
        tensors = [
            x.contiguous() for x in (u, proj, dt_weight, dt_bias, A_logs, Ds)
        ]
        with compiler.on_device(u.device):
            y, saved = host.run_forward(*tensors, geometry, True)
        ctx.save_for_backward(*tensors, saved)
        ctx.geometry = geometry
        return y

    @staticmethod
    def backward(ctx, dy):
        with compiler.on_device(dy.device):
            gradients = host.run_backward(
                dy.contiguous(), *ctx.saved_tensors, ctx.geometry
            )
        return *gradients, None


def host_scan(u, proj, dt_weight, dt_bias, A_logs, Ds, geometry):
    return HostScan.apply(u, proj, dt_weight, dt_bias, A_logs, Ds, geometry)


def arguments(
    size, channels, states, rank, geometry, dtype, batch=2, scale=1.0
):
    """Fp64 numbers on the CPU that the kernel's dtypes hold exactly."""
    sets = geometry.sets
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, kind=torch.float32):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(kind).double()

    columns = (sets if geometry == CROSS else 1) * proj_columns(states, rank)
    return dict(
        u=normal(batch, *size, channels, kind=dtype),
        proj=(normal(batch, *size, columns) * scale).to(dtype).double(),
        dt_weight=normal(sets, channels, rank),
        dt_bias=normal(sets, channels) - 2,
        A_logs=normal(sets * channels, states),
        Ds=normal(sets * channels),
    )


def reference(geometry):
    """The naive scan of the sequences that the geometry lays out."""

    def scan(u, proj, dt_weight, dt_bias, A_logs, Ds):
        height, width, channels = u.shape[1:]
        rank, states = dt_weight.shape[2], A_logs.shape[1]
        sets, xs = list(geometry.parameter_sets), geometry.scan(u)
        if geometry == CROSS:
            blocks = proj.unflatten(-1, (4, -1)).unbind(-2)
            rows = [cross_scan(b)[:, k] for k, b in enumerate(blocks)]
            projected = torch.stack(rows, dim=1)
        else:
            projected = geometry.scan(proj)
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
        return geometry.merge(y, height, width)

    return scan


def on_gpu(values, dtype):
    streams = ('u', 'proj')
    return {
        k: v.to('cuda', dtype if k in streams else torch.float32)
        for k, v in values.items()
    }


def check(values, geometry, dtype, tolerance=None):
    """Value and every gradient, on memory that held NaN before."""
    tolerance = tolerance or TOLERANCE[dtype]
    expected = value_and_gradients(reference(geometry), values)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        actual = value_and_gradients(
            lambda **kw: host_scan(**kw, geometry=geometry),
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
    'geometry', [*map(AtrousGroups, (1, 2, 3, 4)), CROSS], ids=str
)
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5), (55, 37)], ids=str)
def test_kernels_equal_naive_on_any_map(size, geometry, dtype):
    check(arguments(size, 40, 16, 3, geometry, dtype), geometry, dtype)


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
def test_kernels_equal_naive_for_any_width(channels, states, rank):
    geometry = AtrousGroups()
    values = arguments(
        (11, 9), channels, states, rank, geometry, torch.float32
    )
    check(values, geometry, torch.float32)


def test_one_chunk_equals_naive_too(monkeypatch):
    monkeypatch.setattr(variant, '_WORTH_CHUNKS', 10**9)
    values = arguments((55, 37), 40, 16, 3, CROSS, torch.float32)
    # Plans of the same sizes are kept, and must not be afterwards.
    host._plan_call.cache_clear()
    try:
        check(values, CROSS, torch.float32)
    finally:
        host._plan_call.cache_clear()


@pytest.mark.parametrize('shift', [-30.0, 0.0, 30.0])
@pytest.mark.parametrize('decay', [-20.0, 0.0, 8.0])
def test_large_magnitudes(shift, decay):
    """Steps from 1e-13 to 30, decays whose exp under- and overflows."""
    geometry = AtrousGroups()
    values = arguments((20, 21), 16, 16, 2, geometry, torch.float32, scale=3)
    values['dt_bias'] += shift
    values['A_logs'] += decay
    # Decays of nearly one add up hundreds of steps that nearly cancel.
    check(values, geometry, torch.float32, tolerance=1e-4)
