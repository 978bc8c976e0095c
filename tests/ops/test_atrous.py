import math

import pytest
import torch

from evmamba_mm.ops import atrous_merge, atrous_parameter_sets, atrous_scan

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (13, 5), (8, 6), (55, 37)]


def slow_scan(x, p):
    """Cell by cell, following the documented order of groups."""
    batch, height, width, channels = x.shape
    rows, cols = math.ceil(height / p), math.ceil(width / p)
    out = x.new_zeros(batch, p * p, channels, rows * cols)
    for i in range(p):
        for j in range(p):
            for r in range(rows):
                for c in range(cols):
                    y, z = r * p + i, c * p + j
                    t = r * cols + c if i % 2 == 0 else c * rows + r
                    if y < height and z < width:
                        out[:, i + p * j, :, t] = x[:, y, z]
    return out


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('step', [1, 2, 3, 4, 5])
def test_scan_equals_cell_by_cell(size, step):
    x = torch.randn(2, *size, 3)
    torch.testing.assert_close(
        atrous_scan(x, step), slow_scan(x, step), rtol=0, atol=0
    )


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('step', [1, 2, 3, 4, 5])
def test_merge_undoes_scan(size, step):
    x = torch.randn(2, *size, 3)
    merged = atrous_merge(atrous_scan(x, step), *size, step)
    torch.testing.assert_close(merged, x, rtol=0, atol=0)
    assert merged.is_contiguous()


def test_released_order_of_step_two():
    x = torch.arange(16.0).view(1, 4, 4, 1)
    groups = atrous_scan(x, 2)[0, :, 0].int().tolist()
    assert groups == [
        [0, 2, 8, 10],
        [4, 12, 6, 14],
        [1, 3, 9, 11],
        [5, 13, 7, 15],
    ]


def test_non_contiguous_map_and_gradients():
    base = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    x = base.permute(0, 2, 3, 1)
    assert torch.autograd.gradcheck(lambda t: atrous_scan(t, 3), (x,))
    y = torch.randn(1, 9, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: atrous_merge(t, 5, 7, 3), (y,))


def test_parameter_sets():
    assert atrous_parameter_sets(1) == [0]
    assert atrous_parameter_sets(2) == [0, 1, 2, 3]
    assert atrous_parameter_sets(3) == [0, 1, 0, 2, 3, 2, 0, 1, 0]


@pytest.mark.parametrize('step', [0, -2, 1.5, True, '2'])
def test_illegal_step_is_named(step):
    with pytest.raises(ValueError, match='step_size.*at least 1'):
        atrous_scan(torch.zeros(1, 2, 2, 1), step)


@pytest.mark.parametrize('shape', [(2, 3, 4), (1, 0, 3, 2), (1, 3, 0, 2)])
def test_illegal_map_is_named(shape):
    with pytest.raises(ValueError, match=r'\(B, H, W, C\)'):
        atrous_scan(torch.zeros(shape), 2)


def test_illegal_sequences_are_named():
    with pytest.raises(ValueError, match=r'\(B, 4, C, 6\).*\(1, 4, 2, 5\)'):
        atrous_merge(torch.zeros(1, 4, 2, 5), 4, 6, 2)
