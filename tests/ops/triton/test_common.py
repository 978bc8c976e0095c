import pytest
import torch
import torch.nn.functional as F

from .cases import DTYPES, normal, relative_error

triton = pytest.importorskip('triton', reason='triton is not installed')
common = pytest.importorskip('evmamba_mm.ops.triton.common')
tl = triton.language
activate, activation_grad = common.activate, common.activation_grad


@triton.jit
def _scale_kernel(
    y_ptr, x_ptr, shift_ptr, count, factor,
    BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) * factor
    if shift_ptr is not None:
        x += tl.load(shift_ptr + places, mask=mask, other=0.0).to(tl.float32)
    if DOUBLE:
        x *= 2.0
    tl.store(y_ptr + places, x.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _activation_kernel(
    y_ptr, dx_ptr, x_ptr, count,
    BLOCK: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    x = tl.load(x_ptr + places, mask=mask, other=0.0)
    tl.store(y_ptr + places, activate(x, ACTIVATION), mask=mask)
    tl.store(dx_ptr + places, activation_grad(x, ACTIVATION), mask=mask)


def scale(y, x, shift, factor=0.5, double=False):
    count = x.numel()
    common.launch(
        _scale_kernel,
        (-(-count // 128), 1, 1),
        (y, x, shift),
        (count, factor),
        (128, double),
        4,
    )
    return y


def expected(x, shift, factor=0.5, double=False):
    y = x.float() * factor + (0.0 if shift is None else shift.float())
    return (2 * y if double else y).to(x.dtype)


@pytest.mark.parametrize('channels', [1, 3, 48, 96, 1000, 1536, 3072, 9000])
def test_tile_holds_a_row_and_has_powers_of_two(channels):
    tile = common.row_tile(channels)
    assert tile.columns >= channels
    for size in tile:
        assert size >= 1 and size & (size - 1) == 0
    assert tile.warps <= 16


@pytest.mark.parametrize('programs', [None, 1, 7, 1056])
@pytest.mark.parametrize('groups', [0, 1, 128])
@pytest.mark.parametrize('tile_rows', [1, 16, 128])
@pytest.mark.parametrize('count', [1, 49, 784, 401408])
def test_every_row_has_one_program(count, tile_rows, groups, programs):
    number, steps = common.split_rows(
        count, tile_rows, 16, groups, 4, programs
    )
    rows = steps * tile_rows
    assert (number - 1) * rows < count <= number * rows
    assert programs is None or number <= programs or groups * number < 1056


def test_no_row_has_no_program():
    assert common.split_rows(0, 16, 16)[0] == 0


@pytest.mark.parametrize('elements', [16, 1024, 4096, 65536])
def test_pipelined_tiles_fit(elements):
    maps = torch.empty(0), None, torch.empty(0, dtype=torch.bfloat16)
    stages = common.pipeline_stages(elements, *maps)
    fits = stages * elements * 6 <= common.LIMITS.pipeline_bytes
    assert stages == 1 or fits
    assert elements > 1024 or stages > 1


def test_rows_of_a_slice_are_no_copy():
    x = torch.zeros(2, 3, 4, 10)[..., 2:7]
    rows = common.as_rows(x, (-1, 5))
    assert rows.shape == (24, 5)
    assert rows.data_ptr() == x.data_ptr()


def test_rows_are_dense_along_channels():
    x = torch.arange(24.0).reshape(2, 4, 3).mT
    rows = common.as_rows(x, (-1, 4))
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
    rows, strides = common.image_rows(x, shape)
    assert torch.equal(rows.as_strided(shape, (*strides, 1)), x.reshape(shape))


@pytest.mark.parametrize('name', LAYOUTS)
def test_pixels_are_found_by_their_stride(name):
    x = LAYOUTS[name](torch.arange(240.0).reshape(2, 3, 4, 10))
    rows, stride = common.pixel_rows(x)
    shape = (x[..., 0].numel(), x.shape[3])
    start = rows.storage_offset()
    found = rows.as_strided(shape, (stride, 1), start)
    assert torch.equal(found, x.reshape(shape))
    copied = rows.data_ptr() != x.data_ptr()
    assert copied == (name not in ('contiguous', 'slice-of-channels'))


@pytest.mark.parametrize('name', LAYOUTS)
def test_memory_for_a_result_is_dense(name):
    x = LAYOUTS[name](torch.zeros(2, 3, 4, 10))
    y = common.dense_like(x, torch.float16)
    assert y.shape == x.shape and y.dtype == torch.float16
    assert y.is_contiguous()


@pytest.mark.parametrize('name', ['relu', 'gelu', 'silu'])
def test_activation_and_its_derivative(name, device):
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64)
    x.requires_grad_()
    y = getattr(F, name)(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    narrow = x.detach().float().to(device)
    found, gradient = torch.empty_like(narrow), torch.empty_like(narrow)
    common.launch(
        _activation_kernel,
        (8, 1, 1),
        (found, gradient, narrow),
        (1001,),
        (128, name),
        4,
    )
    assert relative_error(found.cpu(), y.detach()) < 1e-6
    assert relative_error(gradient.cpu(), dx) < 1e-6


# Of the counts, 1 is a constant to the JIT and 256 divisible by 16.
@pytest.mark.parametrize('count', [1, 256, 301])
@pytest.mark.parametrize('first', [0, 1], ids=['aligned', 'unaligned'])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_launches_with_other_arguments(dtype, first, count, device):
    memory = normal(3, 512, dtype=dtype, device=device)
    y, x, shift = memory[:, first : first + count]
    for here in (None, shift):
        for factor, double in ((0.5, False), (1.0, True), (0.5, False)):
            y.fill_(float('nan'))
            scale(y, x, here, factor, double)
            wanted = expected(x, here, factor, double)
            # Triton's interpreter cuts a bfloat16 off.
            tolerance = torch.finfo(dtype).eps
            torch.testing.assert_close(
                y, wanted, rtol=tolerance, atol=tolerance
            )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_launches_on_the_device_of_the_tensors():
    for _ in range(2):
        for index in range(2):
            x = normal(256, device=f'cuda:{index}')
            y = scale(torch.empty_like(x), x, None)
            assert torch.equal(y, expected(x, None))
    assert torch.cuda.current_device() == 0


def test_other_device_is_made_the_current_one(monkeypatch, package_log):
    current, seen = [0], []

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current[0] = self.index

        def __exit__(self, *error):
            current[0] = 0

    class Map:
        is_cuda, dtype = True, torch.float32

        def get_device(self):
            return 1

        def data_ptr(self):
            return 0

    class Kernel:
        fn = None

        def __getitem__(self, grid):
            return lambda *a, **options: seen.append((current[0], options))

    monkeypatch.setattr(torch.cuda, 'device', Device)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: current[0])
    common._tell_of_compiling.cache_clear()
    for _ in range(2):
        common.launch(Kernel(), (1, 1, 1), (Map(),), (), (), 4, 2)
    assert seen == [(1, {'num_warps': 4, 'num_stages': 2})] * 2
    assert current == [0]
    assert package_log.text.count('loading GPU kernels') == 1
