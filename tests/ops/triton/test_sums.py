import pytest
import torch

from .cases import DTYPES, normal, relative_error

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
MAPS = {
    'one-pixel': (1, 1, 1, 40),
    'one-row': (2, 1, 7, 5),
    'odd': (3, 13, 5, 131),
    'wide': (1, 2, 2, 768),
    'tokens': (70, 12),
    'no-image': (0, 3, 4, 16),
}


@pytest.fixture
def sums(device):
    from evmamba_mm.ops.triton import sums

    return sums


@pytest.fixture
def tiny_tiles(sums, monkeypatch):
    """Many programs of many steps each, for few numbers."""
    limits = sums.common.LIMITS._replace(
        multiprocessors=0, partial_sums=6, per_thread=1
    )
    monkeypatch.setattr(sums.common, 'LIMITS', limits)
    monkeypatch.setattr(sums, '_PART_TILE', 32)
    for name in ('_part_tile', 'sweep'):
        monkeypatch.setattr(sums, name, getattr(sums, name).__wrapped__)


def parts_of(shape, device):
    """Parts in the midst of NaN."""
    x = normal(*shape, device=device)
    around = x.new_full((x.numel() + 8,), torch.nan)
    around[4:-4] = x.flatten()
    return around[4:-4].view(shape)


def assert_sums(parts, dim, actual, dtype=torch.float32):
    expected = parts.double().sum(dim)
    assert actual.shape == expected.shape
    assert actual.dtype == dtype and actual.is_contiguous()
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert relative_error(actual, expected) <= tolerance


@pytest.mark.parametrize('shape, dim', PARTS.values(), ids=PARTS)
def test_parts(shape, dim, sums, device):
    parts = parts_of(shape, device)
    assert_sums(parts, dim, sums.sum_parts(parts, dim))


@pytest.mark.parametrize('shape, dim', PARTS.values(), ids=PARTS)
def test_parts_in_many_tiles(shape, dim, sums, device, tiny_tiles):
    shape = tuple(min(size, 70) for size in shape)
    parts = parts_of(shape, device)
    assert_sums(parts, dim, sums.sum_parts(parts, dim))


@pytest.mark.parametrize('count', [1, 9])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_dtype_of_the_sums(count, dtype, sums, device):
    parts = parts_of((3, count, 20), device)
    assert_sums(parts, 1, sums.sum_parts(parts, 1, dtype), dtype)


def test_one_part_is_not_copied(sums, device):
    parts = parts_of((3, 1, 20), device)
    assert sums.sum_parts(parts, 1).data_ptr() == parts.data_ptr()


def test_two_runs_are_the_same(sums, device):
    parts = parts_of((300, 41), device)
    assert torch.equal(sums.sum_parts(parts), sums.sum_parts(parts))


def test_nan_stays_where_it_is(sums, device):
    parts = parts_of((5, 20), device).clone()
    parts[3, 7] = torch.nan
    isnan = sums.sum_parts(parts).isnan()
    assert isnan[7] and isnan.sum() == 1


@pytest.mark.parametrize('shape', [(1, 10, 5), (70, 10, 37), (0, 10, 5)])
def test_transposed_rows(shape, sums, device):
    parts = parts_of(shape, device)
    total = parts.double().sum(0)
    expected = torch.cat([total[:9].T.flatten(), total[9]])
    assert relative_error(sums.sum_parts_turned(parts), expected) < 1e-6


@pytest.mark.parametrize(
    'groups, parts, width',
    [(1, 1056, 192), (1, 88, 7680), (128, 9, 192), (1, 2, 10**6), (9, 1, 1)],
)
def test_tile_covers_sectors_and_fits(groups, parts, width, sums):
    rows, columns, warps = sums._part_tile(groups, parts, width)
    assert rows * columns <= sums._PART_TILE and columns >= 8
    assert 1 <= warps <= 16
    assert (rows & (rows - 1)) == 0 == (columns & (columns - 1))


@pytest.mark.parametrize('channels', [1, 48, 65, 1536])
@pytest.mark.parametrize('tokens', [1, 49, 784, 401408])
def test_sweep_covers_the_map(tokens, channels, sums):
    plan = sums.sweep(tokens, channels, sums.WARPS)
    limit = sums.common.LIMITS.partial_sums
    assert plan.chunks * plan.columns >= channels
    assert plan.programs * plan.chunks <= limit
    tiles = -(-tokens // plan.rows)
    assert plan.programs <= tiles <= plan.programs * plan.steps


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(2, 7, 9, 48), (1, 1, 1, 5), (0, 3, 16)])
def test_channel_sums(shape, dtype, sums, device):
    x = normal(*shape, dtype=dtype, device=device)
    actual = sums.channel_sums(x)
    expected = x.double().flatten(0, -2).sum(0)
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() < 1e-4


def test_channel_sums_of_a_slice(sums, device):
    x = normal(2, 20, 5, 40, device=device)[..., 20:]
    expected = x.double().flatten(0, -2).sum(0)
    assert (sums.channel_sums(x) - expected).abs().max() < 1e-4
