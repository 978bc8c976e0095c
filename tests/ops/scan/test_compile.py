"""The scans of a map under torch.export and torch.compile with any sizes."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from evmamba_mm.ops import es2d_scan, ss2d_scan
from evmamba_mm.ops.scan.numba_scan import numba_installed

from .scan_cases import map_parameters, relative_error

MODES = ['torch'] + ['numba'] * numba_installed()
SCANS = {'es2d-1': 1, 'es2d-2': 4, 'es2d-3': 4, 'ss2d': 4}


class Scan(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        for key, value in map_parameters(SCANS[name]).items():
            self.register_parameter(key, nn.Parameter(value))

    def forward(self, x):
        parameters = (
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
        )
        if self.name == 'ss2d':
            return ss2d_scan(x, *parameters)
        return es2d_scan(x, *parameters, step_size=int(self.name[-1]))


@pytest.fixture(params=SCANS)
def scan(request):
    torch._dynamo.reset()
    return Scan(request.param)


def check(compiled, scan, shapes):
    """Without gradients, where the choice of backend was made before."""
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(compiled(x), scan(x)) < 1e-5, shape


@pytest.mark.parametrize('backend', MODES)
@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('size', [(12, 12), (13, 11)], ids=str)
def test_exports_with_a_bounded_batch(size, strict, backend, scan):
    batch = {0: Dim('b', min=1, max=64)}
    x = torch.randn(2, *size, 4)
    with torch.set_grad_enabled(backend == 'torch'):
        program = torch.export.export(
            scan, (x,), dynamic_shapes=(batch,), strict=strict
        )
    shapes = [(count, *size, 4) for count in (1, 3, 64)]
    check(program.module(), scan, shapes)


@pytest.mark.parametrize('backend', MODES)
@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('size', [(12, 12), (13, 11)], ids=str)
def test_exports_with_any_height_and_width(size, strict, backend, scan):
    dynamic = {
        0: Dim('b', min=1, max=64),
        1: Dim('height', min=1, max=512),
        2: Dim('width', min=1, max=512),
    }
    x = torch.randn(2, *size, 4)
    with torch.set_grad_enabled(backend == 'torch'):
        program = torch.export.export(
            scan, (x,), dynamic_shapes=(dynamic,), strict=strict
        )
    shapes = [(1, 4, 4, 4), (3, 7, 5, 4), (5, 2, 9, 4), (2, 40, 33, 4)]
    check(program.module(), scan, shapes)


def test_the_exported_batch_has_its_bounds(scan):
    batch = {0: Dim('b', min=1, max=64)}
    program = torch.export.export(
        scan, (torch.randn(2, 5, 5, 4),), dynamic_shapes=(batch,)
    )
    (bounds,) = program.range_constraints.values()
    assert bounds.upper == 64
    with pytest.raises(Exception, match='64'):
        program.module()(torch.randn(65, 5, 5, 4))


@pytest.mark.parametrize('gradients', [True, False])
def test_one_graph_serves_all_sizes(gradients, scan):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(scan, fullgraph=True, dynamic=True, backend=count)
    with torch.set_grad_enabled(gradients):
        for shape in ((2, 12, 10, 4), (3, 7, 5, 4), (5, 40, 33, 4)):
            x = torch.randn(shape)
            assert relative_error(compiled(x), scan(x)) < 1e-5
    assert len(graphs) == 1


def test_compiled_gradients_of_any_size(scan):
    compiled = torch.compile(
        scan, fullgraph=True, dynamic=True, backend='aot_eager'
    )
    for shape in ((2, 12, 10, 4), (3, 7, 5, 4), (1, 9, 6, 4)):
        x = torch.randn(shape, requires_grad=True)
        leaves = [x, *scan.parameters()]
        expected, actual = (
            torch.autograd.grad(f(x).sin().sum(), leaves)
            for f in (scan, compiled)
        )
        for a, b in zip(actual, expected, strict=True):
            assert relative_error(a, b) < 1e-4, shape


def test_inductor_accepts_the_strides_of_each_gradient():
    scan = Scan('es2d-1')
    torch._dynamo.reset()
    x = torch.randn(2, 5, 3, 4)
    compiled = torch.compile(scan, fullgraph=True)
    for a, b in zip(
        torch.autograd.grad(compiled(x).sum(), list(scan.parameters())),
        torch.autograd.grad(scan(x).sum(), list(scan.parameters())),
        strict=True,
    ):
        assert relative_error(a, b) < 1e-4


def test_a_changing_step_and_changing_directions_compile():
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend='aot_eager')
    def es2d(x, p, step):
        return es2d_scan(x, **p, step_size=step)

    @torch.compile(fullgraph=True, backend='aot_eager')
    def ss2d(x, p, directions):
        return ss2d_scan(x, **p, directions=directions)

    x = torch.randn(2, 6, 7, 4)
    for step in (1, 2, 3, 4):
        p = map_parameters(min(4, step**2))
        expected = es2d_scan(x, **p, step_size=step, backend='naive')
        assert relative_error(es2d(x, p, step), expected) < 1e-5
    for directions in (('rows',), ('columns', 'rows'), ('rows',) * 5):
        p = map_parameters(len(directions))
        expected = ss2d_scan(x, **p, directions=directions, backend='naive')
        assert relative_error(ss2d(x, p, directions), expected) < 1e-5


@pytest.mark.parametrize('step', [1, 2, 3])
def test_torch_accepts_the_layout_ops(step):
    ops = torch.ops.evmamba_mm
    x = torch.randn(2, 5, 7, 3, requires_grad=True)
    torch.library.opcheck(ops.atrous_scan.default, (x, step))
    y = ops.atrous_scan(x, step).detach().requires_grad_()
    torch.library.opcheck(ops.atrous_merge.default, (y, 5, 7, step))
