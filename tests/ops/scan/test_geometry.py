import math

import pytest
import torch

from evmamba_mm.ops import (
    AtrousGroups,
    CrossDirections,
    atrous_merge,
    atrous_parameter_sets,
    atrous_scan,
    cross_merge,
    cross_scan,
)
from evmamba_mm.ops.scan import geometry
from evmamba_mm.ops.scan.cuda import geometry_served

from .scan_cases import DIRECTION_CHOICES, map_parameters

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (13, 5), (8, 6), (55, 37)]


def slow_atrous_scan(x, p):
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
def test_atrous_scan_equals_cell_by_cell(size, step):
    x = torch.randn(2, *size, 3)
    torch.testing.assert_close(
        atrous_scan(x, step), slow_atrous_scan(x, step), rtol=0, atol=0
    )


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('step', [1, 2, 3, 4, 5])
def test_atrous_merge_undoes_scan(size, step):
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


def test_atrous_gradients_and_a_strided_map():
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


def test_illegal_atrous_sequences_are_named():
    with pytest.raises(ValueError, match=r'\(B, 4, C, 6\).*\(1, 4, 2, 5\)'):
        atrous_merge(torch.zeros(1, 4, 2, 5), 4, 6, 2)


def slow_cross_scan(x, directions):
    """Cell by cell, in the order that the name of each direction says."""
    batch, height, width, channels = x.shape
    out = x.new_zeros(batch, len(directions), channels, height * width)
    for k, name in enumerate(directions):
        cells = [(h, w) for h in range(height) for w in range(width)]
        if name.startswith('columns'):
            cells.sort(key=lambda cell: cell[::-1])
        if name.endswith('reversed'):
            cells.reverse()
        for t, (h, w) in enumerate(cells):
            out[:, k, :, t] = x[:, h, w]
    return out


@pytest.mark.parametrize('size', SIZES[:5], ids=str)
@pytest.mark.parametrize('directions', DIRECTION_CHOICES, ids=len)
def test_cross_scan_equals_cell_by_cell(size, directions):
    x, geometry = torch.randn(2, *size, 3), CrossDirections(directions)
    sequences = geometry.scan(x)
    assert torch.equal(sequences, slow_cross_scan(x, directions))
    merged = geometry.merge(sequences, *size)
    assert merged.is_contiguous()
    torch.testing.assert_close(merged, len(directions) * x)


@pytest.mark.parametrize('directions', DIRECTION_CHOICES, ids=len)
def test_cross_merge_sums_each_sequence_once(directions):
    y = torch.randn(1, len(directions), 2, 12, dtype=torch.float64)
    x = torch.randn(1, 3, 4, 2, dtype=torch.float64)
    geometry = CrossDirections(directions)
    # <scan(x), y> = <x, merge(y)> for the transpose of the scan.
    expected = (geometry.scan(x) * y).sum()
    torch.testing.assert_close((x * geometry.merge(y, 3, 4)).sum(), expected)


def test_a_single_direction_does_not_share_memory():
    y = torch.randn(1, 1, 1, 6)
    merged = CrossDirections(('rows',)).merge(y, 2, 3)
    assert merged.data_ptr() != y.data_ptr()


def test_order_of_the_default_directions():
    x = torch.arange(6.0).view(1, 2, 3, 1)
    assert cross_scan(x)[0, :, 0].int().tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_cross_gradients():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 4, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cross_scan, (x,))
    assert torch.autograd.gradcheck(lambda t: cross_merge(t, 3, 2), (y,))


def test_a_path_of_ones_own_is_read_and_written(monkeypatch):
    order = torch.tensor([0, 3, 1, 4, 2, 5])

    def write(y, height, width):
        return y[..., order.argsort()].unflatten(2, (height, width))

    path = (lambda x: x.flatten(2)[..., order], write)
    monkeypatch.setitem(geometry.PATHS, 'zigzag', path)
    names = ('rows', 'zigzag_reversed')
    legal = (*geometry.FOUR_DIRECTIONS, *names)
    monkeypatch.setattr(geometry, 'DIRECTIONS', legal)
    x = torch.randn(1, 2, 3, 2)
    both = CrossDirections(names)
    y = both.scan(x)
    cells = x.flatten(1, 2).mT
    assert torch.equal(y[:, 0], cells)
    assert torch.equal(y[:, 1], cells[..., order].flip(-1))
    torch.testing.assert_close(both.merge(y, 2, 3), 2 * x)
    # It is legal, and not a part of the default.
    assert CrossDirections().sets == 4
    assert not geometry_served(both)


def test_illegal_cross_shapes_are_named():
    with pytest.raises(ValueError, match=r'\(B, H, W, C\)'):
        cross_scan(torch.zeros(2, 0, 3, 1))
    with pytest.raises(ValueError, match=r'\(B, 4, C, 6\)'):
        cross_merge(torch.zeros(1, 3, 2, 6), 2, 3)


@pytest.mark.parametrize('given', [(), ('rows', 'diagonal'), 'rows', ['rows']])
def test_illegal_directions_are_named(given):
    with pytest.raises(ValueError, match='rows, columns, rows_reversed'):
        CrossDirections(given)


@pytest.mark.parametrize(
    ('geometry', 'sequences', 'sets'),
    [
        (AtrousGroups(1), 1, 1),
        (AtrousGroups(), 4, 4),
        (AtrousGroups(3), 9, 4),
        (AtrousGroups(5), 25, 4),
        (CrossDirections(), 4, 4),
        (CrossDirections(('rows',)), 1, 1),
        (CrossDirections(('rows',) * 5), 5, 5),
    ],
    ids=str,
)
def test_counts(geometry, sequences, sets):
    assert geometry.sequences == len(geometry.parameter_sets) == sequences
    assert set(geometry.parameter_sets) == set(range(sets))
    assert geometry.sets == sets
    assert geometry.scan(torch.zeros(1, 7, 5, 2)).shape[1] == sequences


@pytest.mark.parametrize(
    'name',
    ['x_proj_weight', 'dt_projs_weight', 'dt_projs_bias', 'A_logs', 'Ds'],
)
@pytest.mark.parametrize(
    'geometry',
    [AtrousGroups(1), AtrousGroups(3), CrossDirections(('rows',) * 5)],
    ids=str,
)
def test_check_names_the_argument_and_the_legal_shape(geometry, name):
    x, given = torch.zeros(1, 4, 4, 4), map_parameters(geometry.sets)
    geometry.check(x, *given.values())
    legal = tuple(given[name].shape)
    given[name] = torch.cat([given[name], given[name]])
    with pytest.raises(ValueError) as error:
        geometry.check(x, *given.values())
    message = str(error.value)
    assert f'{name} must have shape {legal}' in message
    assert f'{geometry}, got {tuple(given[name].shape)}' in message


def test_check_names_a_missing_dimension_and_another_device():
    x, given = torch.zeros(1, 4, 4, 4), map_parameters(4)
    for name in ('A_logs', 'dt_projs_weight'):
        with pytest.raises(ValueError, match=f'{name} must have . dimensions'):
            broken = given | {name: given[name][0]}
            AtrousGroups().check(x, *broken.values())
    broken = given | {'Ds': given['Ds'].to('meta')}
    with pytest.raises(ValueError, match='x is on cpu, Ds on meta'):
        AtrousGroups().check(x, *broken.values())
