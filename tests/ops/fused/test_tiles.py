import pytest
import torch

from evmamba_mm.ops.fused.tiles import (
    as_rows,
    dense_like,
    image_rows,
    row_tile,
    split_rows,
)


@pytest.mark.parametrize('channels', [1, 3, 48, 96, 1000, 1536, 3072, 9000])
def test_tile_holds_a_row_and_has_powers_of_two(channels):
    tile = row_tile(channels)
    assert tile.columns >= channels
    for size in tile:
        assert size >= 1 and size & (size - 1) == 0
    assert tile.warps <= 16


@pytest.mark.parametrize('programs', [None, 1, 7, 1056])
@pytest.mark.parametrize('groups', [0, 1, 128])
@pytest.mark.parametrize('tile_rows', [1, 16, 128])
@pytest.mark.parametrize('count', [1, 49, 784, 401408])
def test_every_row_has_one_program(count, tile_rows, groups, programs):
    number, steps = split_rows(count, tile_rows, 16, groups, 4, programs)
    rows = steps * tile_rows
    assert (number - 1) * rows < count <= number * rows
    assert programs is None or number <= programs or groups * number < 1056


def test_no_row_has_no_program():
    assert split_rows(0, 16, 16)[0] == 0


def test_rows_of_a_slice_are_no_copy():
    x = torch.zeros(2, 3, 4, 10)[..., 2:7]
    rows = as_rows(x, (-1, 5))
    assert rows.shape == (24, 5)
    assert rows.data_ptr() == x.data_ptr()


def test_rows_are_dense_along_channels():
    x = torch.arange(24.0).reshape(2, 4, 3).mT
    rows = as_rows(x, (-1, 4))
    assert rows.stride() == (4, 1)
    assert torch.equal(rows, x.reshape(6, 4))


LAYOUTS = {
    'contiguous': lambda x: x,
    'slice-of-channels': lambda x: x[..., 2:7],
    'slice-of-columns': lambda x: x[:, :, 1:],
    'channels-first': lambda x: x.permute(0, 3, 1, 2),
    'one-pixel': lambda x: x[:, :1, :1],
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_rows_of_images_are_found_by_their_strides(name):
    x = LAYOUTS[name](torch.arange(240.0).reshape(2, 3, 4, 10))
    shape = (x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
    rows, strides = image_rows(x, shape)
    assert torch.equal(rows.as_strided(shape, (*strides, 1)), x.reshape(shape))


@pytest.mark.parametrize('name', LAYOUTS)
def test_memory_for_a_result_is_dense(name):
    x = LAYOUTS[name](torch.zeros(2, 3, 4, 10))
    out = dense_like(x, torch.float16)
    assert out.shape == x.shape and out.dtype == torch.float16
    assert out.is_contiguous()
