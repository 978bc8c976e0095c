from itertools import product
from math import nan

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops import merge_layer_norm

from ..scan_cases import relative_error
from .kernel_cases import (
    DTYPES,
    assert_kernel_is_right,
    assert_same,
    normal,
    results,
)

SHAPES = {
    'even': (2, 4, 6, 48),
    'odd': (2, 5, 7, 12),
    'odd-high': (1, 3, 4, 33),
    'one-cell': (3, 1, 1, 96),
    'one-row': (1, 1, 7, 16),
    'one-channel': (2, 3, 3, 1),
    'wide': (1, 3, 2, 384),
    'no-entry': (0, 2, 2, 48),
}


def arguments(shape, dtype=torch.float64, device='cpu'):
    parameters = torch.promote_types(dtype, torch.float32)
    wide = 4 * shape[3]
    return dict(
        x=normal(*shape, dtype=dtype, device=device) + 1,
        weight=normal(wide, dtype=parameters, device=device, seed=1),
        bias=normal(wide, dtype=parameters, device=device, seed=2),
    )


def test_twin_follows_the_definition():
    values = arguments((2, 3, 4, 2))
    y = merge_layer_norm(**values)
    x = F.pad(values['x'], (0, 0, 0, 0, 0, 1))
    for n, row, column in product(range(2), range(2), range(2)):
        cells = [
            x[n, 2 * row + down, 2 * column + right]
            for down, right in ((0, 0), (1, 0), (0, 1), (1, 1))
        ]
        expected = F.layer_norm(
            torch.cat(cells), (8,), values['weight'], values['bias']
        )
        torch.testing.assert_close(y[n, row, column], expected)


def test_twin_passes_gradcheck():
    leaves = [x.requires_grad_() for x in arguments((2, 3, 4, 2)).values()]
    assert torch.autograd.gradcheck(merge_layer_norm, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernels(shape, dtype, device):
    values = arguments(shape, dtype, device)
    assert_kernel_is_right(merge_layer_norm, values, dtype)


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_inference(shape, device):
    values = arguments(shape, torch.float32, device)
    y = merge_layer_norm(**values, backend='triton')
    with torch.no_grad():
        again = merge_layer_norm(**values, backend='triton')
    assert torch.equal(y, again)


@pytest.mark.parametrize('processors', [0, 10**6], ids=['few', 'many'])
def test_any_number_of_programs(processors, device, monkeypatch):
    from evmamba_mm.ops.fused import norm_triton, tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', processors)
    if not processors:
        monkeypatch.setattr(norm_triton, '_MOST_PARTIAL_SUMS', 1)
    values = arguments((3, 9, 11, 24), torch.float32, device)
    assert_kernel_is_right(merge_layer_norm, values, torch.float32)


def test_map_with_strides(device):
    x = normal(2, 3, 5, 48, dtype=torch.float32, device=device)
    for view in (x[:, :, 1:], x[..., :24], x.permute(0, 3, 1, 2)):
        values = arguments(view.shape, torch.float32, device) | {'x': view}
        assert_kernel_is_right(merge_layer_norm, values, torch.float32)


def test_gradient_with_strides(device):
    values = arguments((2, 3, 5, 12), torch.float32, device)
    leaves = [x.requires_grad_() for x in values.values()]

    def gradients(backend):
        y = merge_layer_norm(*leaves, backend=backend)
        dy = normal(2, 48, 2, 3, dtype=torch.float32, device=device)
        return torch.autograd.grad(y, leaves, dy.permute(0, 2, 3, 1))

    for pair in zip(gradients('triton'), gradients('torch'), strict=True):
        assert relative_error(*pair) < 1e-5


def test_every_value_is_written(device, monkeypatch):
    values = arguments((2, 5, 7, 33), torch.float32, device)

    def run():
        return results(merge_layer_norm, values, 'triton', torch.float32)

    expected, empty, like = run(), torch.empty, torch.empty_like
    for name, make in (('empty', empty), ('empty_like', like)):
        monkeypatch.setattr(
            torch, name, lambda *a, make=make, **k: make(*a, **k).fill_(nan)
        )
    assert_same(run(), expected)


def test_two_runs_are_the_same(device):
    values = arguments((2, 9, 6, 48), torch.bfloat16, device)
    assert_same(
        *(
            results(merge_layer_norm, values, 'triton', torch.bfloat16)
            for _ in range(2)
        )
    )


def test_compiles_into_one_graph(device):
    values = arguments((2, 3, 5, 24), torch.float32, device)
    compiled = torch.compile(
        merge_layer_norm, fullgraph=True, backend='aot_eager'
    )
    found = results(compiled, values, 'triton', torch.float32)
    expected = results(merge_layer_norm, values, 'triton', torch.float32)
    for name, value in found.items():
        assert relative_error(value, expected[name]) < 1e-5, name


@torch.no_grad()
def test_autocast_narrows_the_result(device):
    values = arguments((1, 4, 4, 16), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        y = merge_layer_norm(**values, backend='triton')
    assert y.dtype == torch.bfloat16
    expected = merge_layer_norm(**values, backend='torch')
    assert relative_error(y.float(), expected) < 1e-2


@pytest.mark.parametrize(
    ('name', 'shape', 'message'),
    [
        ('x', (2, 4, 8), 'x must be a map'),
        ('x', (2, 0, 4, 2), 'x must be a map'),
        ('weight', (7,), 'weight and bias'),
        ('bias', (4,), 'weight and bias'),
    ],
)
def test_shapes_that_do_not_fit(name, shape, message):
    values = arguments((2, 4, 4, 2)) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=message):
        merge_layer_norm(**values)
