import pytest
import torch

from evmamba_mm.ops.fused import sums

from ..scan_cases import relative_error
from .kernel_cases import DTYPES, normal

PARTS = {
    'few': ((5, 7), 0),
    'many-and-odd': ((1100, 2, 33), 0),
    'wide': ((3, 10007), 0),
    'groups': ((6, 9, 20), 1),
    'two-gates': ((2, 3, 4, 131), 2),
    'groups-of-matrices': ((4, 37, 3, 5), 1),
    'one-number': ((70, 1), 0),
    'numbers': ((70,), 0),
    'no-part': ((0, 2, 5), 0),
    'no-group': ((0, 3, 5), 1),
    'no-number': ((3, 0), 0),
}


@pytest.fixture
def kernels(device):
    from evmamba_mm.ops.fused import sums_triton

    return sums_triton


@pytest.fixture
def tiny_tiles(kernels, monkeypatch):
    monkeypatch.setattr(kernels, '_TILE', 32)
    monkeypatch.setattr(kernels, '_ENOUGH_PROGRAMS', 1)
    monkeypatch.setattr(kernels, '_tile', kernels._tile.__wrapped__)


@pytest.fixture
def poisoned(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(
        torch, 'empty', lambda *a, **k: empty(*a, **k).fill_(torch.nan)
    )


def parts_of(shape, device):
    """Parts between numbers that are none."""
    x = normal(*shape, dtype=torch.float32, device=device)
    around = x.new_full((x.numel() + 8,), torch.nan)
    around[4:-4] = x.flatten()
    return around[4:-4].view(shape)


def assert_sums(parts, dim, actual, dtype=torch.float32):
    expected = parts.double().sum(dim)
    assert actual.dtype == dtype and actual.is_contiguous()
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert relative_error(actual, expected) <= tolerance


@pytest.mark.parametrize('shape, dim', PARTS.values(), ids=PARTS)
def test_parts(shape, dim, kernels, device, poisoned):
    parts = parts_of(shape, device)
    assert_sums(parts, dim, kernels.add_up(parts, dim))


@pytest.mark.parametrize('shape, dim', PARTS.values(), ids=PARTS)
def test_parts_in_many_tiles(
    shape, dim, kernels, device, poisoned, tiny_tiles
):
    shape = tuple(min(size, 70) for size in shape)
    parts = parts_of(shape, device)
    assert_sums(parts, dim, kernels.add_up(parts, dim))


@pytest.mark.parametrize('count', [1, 9])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_dtype_of_the_sums(count, dtype, kernels, device):
    parts = parts_of((3, count, 20), device)
    assert_sums(parts, 1, kernels.add_up(parts, 1, dtype), dtype)


def test_one_part_is_not_copied(kernels, device):
    parts = parts_of((3, 1, 20), device)
    assert kernels.add_up(parts, 1).data_ptr() == parts.data_ptr()


def test_two_runs_are_the_same(kernels, device):
    parts = parts_of((300, 41), device)
    assert torch.equal(kernels.add_up(parts), kernels.add_up(parts))


def test_nan_stays_where_it_is(kernels, device):
    parts = parts_of((5, 20), device).clone()
    parts[3, 7] = torch.nan
    isnan = kernels.add_up(parts).isnan()
    assert isnan[7] and isnan.sum() == 1


@pytest.mark.parametrize('shape', [(1, 10, 5), (70, 10, 37), (0, 10, 5)])
def test_turned_rows(shape, kernels, device, poisoned):
    parts = parts_of(shape, device)
    total = parts.double().sum(0)
    expected = torch.cat([total[:9].T.flatten(), total[9]])
    assert relative_error(kernels.add_up_turned(parts), expected) < 1e-6


@pytest.mark.parametrize(
    'groups, parts, width',
    [(1, 1056, 192), (1, 88, 7680), (128, 9, 192), (1, 2, 10**6), (9, 1, 1)],
)
def test_tile_covers_sectors_and_fits(groups, parts, width, kernels):
    rows, columns, warps = kernels._tile(groups, parts, width)
    assert rows * columns <= kernels._TILE and columns >= 8
    assert 1 <= warps <= 16
    assert (rows & (rows - 1)) == 0 == (columns & (columns - 1))


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_either_way_of_parts(backend, device, monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', backend)
    parts = parts_of((6, 4, 20), device)
    actual = sums.add_up(parts, 1, torch.float16)
    assert_sums(parts, 1, actual, torch.float16)


MAPS = {
    'one-pixel': (1, 1, 1, 40),
    'one-row': (2, 1, 7, 5),
    'odd': (3, 13, 5, 131),
    'wide': (1, 2, 2, 768),
    'tokens': (70, 12),
    'no-image': (0, 3, 4, 16),
}


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', MAPS.values(), ids=MAPS)
def test_columns(shape, dtype, backend, device, monkeypatch, poisoned):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', backend)
    x = normal(*shape, dtype=dtype, device=device)
    actual = sums.column_sums(x)
    assert actual.dtype == torch.float32
    expected = x.double().flatten(0, -2).sum(0)
    assert relative_error(actual, expected) < 1e-6


def test_columns_of_many_programs(device, monkeypatch):
    from evmamba_mm.ops.fused import batch_statistics_triton as statistics
    from evmamba_mm.ops.fused import column_sums_triton as kernels

    monkeypatch.setattr(statistics, 'MOST_PROGRAMS', 6)
    monkeypatch.setattr(statistics, '_PER_THREAD', 1)
    monkeypatch.setattr(kernels, 'sweep', statistics.sweep.__wrapped__)
    x = normal(3, 25, 9, 130, dtype=torch.float32, device=device)
    expected = x.double().sum((0, 1, 2))
    assert relative_error(kernels.column_sums(x), expected) < 1e-6


def test_columns_of_maps_with_strides(device, monkeypatch):
    monkeypatch.setenv('EVMAMBA_FUSED_BACKEND', 'triton')
    x = normal(2, 3, 5, 96, dtype=torch.float32, device=device)
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    views = (x[..., :48], x[..., 1::2], x[:, :, 1:], x.mT, channels_first)
    for view in (*views, x[:, :1, :1].expand(2, 3, 5, 96)):
        expected = view.double().sum((0, 1, 2))
        assert relative_error(sums.column_sums(view), expected) < 1e-6


def test_columns_in_double_precision():
    x = normal(2, 3, 5)
    torch.testing.assert_close(sums.column_sums(x), x.sum((0, 1)))
