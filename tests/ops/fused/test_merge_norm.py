from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops import merge_layer_norm

from ..scan_cases import relative_error
from .kernel_cases import DTYPES, assert_inference_is_right, normal

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


assert_near = partial(assert_inference_is_right, merge_layer_norm)


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


@torch.no_grad()
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(shape, dtype, device):
    values = arguments(shape, dtype, device)
    y = merge_layer_norm(**values, backend='triton')
    if y.numel():
        assert_near(y, values, dtype)
    else:
        assert y.shape == (0, 1, 1, 192)


@torch.no_grad()
@pytest.mark.parametrize('processors', [0, 10**6], ids=['few', 'many'])
def test_any_number_of_programs(processors, device, monkeypatch):
    from evmamba_mm.ops.fused import tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', processors)
    values = arguments((3, 9, 11, 24), torch.float32, device)
    y = merge_layer_norm(**values, backend='triton')
    assert_near(y, values, torch.float32)


@torch.no_grad()
def test_map_with_strides(device):
    x = normal(2, 3, 5, 48, dtype=torch.float32, device=device)
    for view in (x[:, :, 1:], x[..., :24], x.permute(0, 3, 1, 2)):
        values = arguments(view.shape, torch.float32, device) | {'x': view}
        y = merge_layer_norm(**values, backend='triton')
        assert_near(y, values, torch.float32)


@torch.no_grad()
def test_every_value_is_written(device, monkeypatch):
    values = arguments((2, 5, 7, 33), torch.float32, device)
    expected = merge_layer_norm(**values, backend='triton')
    empty = torch.empty
    monkeypatch.setattr(
        torch, 'empty', lambda *a, **k: empty(*a, **k).fill_(torch.nan)
    )
    assert torch.equal(merge_layer_norm(**values, backend='triton'), expected)


@torch.no_grad()
def test_autocast_narrows_the_result(device):
    values = arguments((1, 4, 4, 16), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        y = merge_layer_norm(**values, backend='triton')
    assert y.dtype == torch.bfloat16
    expected = merge_layer_norm(**values, backend='torch')
    assert relative_error(y.float(), expected) < 1e-2


def test_gradients_go_by_the_twin(device):
    values = arguments((1, 3, 4, 8), torch.float32, device)
    leaves = [x.requires_grad_() for x in values.values()]
    y = merge_layer_norm(*leaves, backend='triton')
    expected = merge_layer_norm(*leaves, backend='torch')
    for pair in zip(
        torch.autograd.grad(y.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


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
