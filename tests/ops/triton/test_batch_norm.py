import pytest
import torch
import torch.nn.functional as F

from .cases import (
    DTYPES,
    assert_close_to_reference,
    normal,
    relative_error,
    results,
)

pytest.importorskip('triton', reason='triton is not installed')

from evmamba_mm.ops.triton import batch_norm as family
from evmamba_mm.ops.triton import common, sums
from evmamba_mm.ops.triton.batch_norm import batch_norm_act

ACTIVATIONS = ('none', 'relu', 'gelu')
SHAPES = {
    'odd-map': (2, 7, 9, 48),
    'many-rows': (3, 13, 5, 96),
    'one-channel': (2, 9, 31, 1),
    'prime-channels': (2, 3, 4, 131),
    'wide': (1, 2, 2, 1536),
    'three-rows': (3, 1, 1, 48),
    'no-entry': (0, 2, 2, 48),
}


def norm_arguments(shape, dtype, device):
    """A map whose channels are far from mean 0 and variance 1."""
    wide = torch.float64
    x = normal(*shape, dtype=wide) * 3 + normal(shape[-1], dtype=wide, seed=4)
    return dict(
        x=x.to(dtype).to(device),
        weight=normal(shape[-1], device=device, seed=1),
        bias=normal(shape[-1], device=device, seed=2),
    )


def running_of(channels, device, dtype=torch.float32):
    mean = normal(channels, seed=3, dtype=torch.float64)
    running = (mean, mean.square() + 4)
    return [x.to(dtype).to(device) for x in running]


def kernel_of(training, activation, eps=1e-5, momentum=0.1, dtype=None):
    """The op with running statistics that no other call sees."""

    def kernel(x, weight, bias):
        running = running_of(x.shape[-1], x.device, weight.dtype)
        return batch_norm_act(
            x,
            weight,
            bias,
            *running,
            training,
            momentum,
            eps,
            activation,
            dtype or x.dtype,
        )

    return kernel


def reference_of(training, activation, eps=1e-5, dtype=None):
    def reference(x, weight, bias):
        wide = torch.promote_types(x.dtype, torch.float32)
        z = x.to(wide)
        mean, var = running_of(x.shape[-1], x.device, weight.dtype)
        if training and x.numel() > 0:
            mean = z.mean((0, 1, 2))
            var = z.var((0, 1, 2), correction=0)
        z = (z - mean.to(wide)) / (var.to(wide) + eps).sqrt()
        z = z * weight.to(wide) + bias.to(wide)
        if activation == 'relu':
            z = F.relu(z)
        if activation == 'gelu':
            z = F.gelu(z)
        exact = x.dtype == torch.float64
        return z.to(x.dtype if exact or dtype is None else dtype)

    return reference


def assert_right(arguments, training, activation, eps=1e-5, dtype=None):
    assert_close_to_reference(
        kernel_of(training, activation, eps, dtype=dtype),
        reference_of(training, activation, eps, dtype),
        arguments,
    )


def train(arguments, running, momentum=0.1, activation='none', count=None):
    return batch_norm_act(
        **arguments,
        running_mean=running[0],
        running_var=running[1],
        training=True,
        momentum=momentum,
        eps=1e-5,
        activation=activation,
        dtype=arguments['x'].dtype,
        num_batches_tracked=count,
    )


def follow(arguments, running):
    """Running statistics in fp64, as torch moves them."""
    wide = [x.double() for x in running]
    x = arguments['x'].double().permute(0, 3, 1, 2)
    F.batch_norm(x, *wide, None, None, True, 0.1)
    return wide


@pytest.fixture(params=[True, False], ids=['training', 'evaluation'])
def training(request):
    return request.param


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(shape, dtype, training, device):
    assert_right(norm_arguments(shape, dtype, device), training, 'relu')


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_each_activation(activation, dtype, training, device):
    arguments = norm_arguments((2, 3, 5, 20), dtype, device)
    assert_right(arguments, training, activation)


@pytest.mark.parametrize('eps', [0.0, 0.5])
def test_other_eps(eps, training, device):
    arguments = norm_arguments((2, 3, 5, 20), torch.float32, device)
    assert_right(arguments, training, 'gelu', eps)


def test_one_pixel_in_evaluation(device):
    arguments = norm_arguments((1, 1, 1, 48), torch.float32, device)
    assert_right(arguments, False, 'gelu')


def test_result_in_another_dtype(training, device):
    arguments = norm_arguments((2, 3, 5, 20), torch.float32, device)
    assert_right(arguments, training, 'gelu', dtype=torch.float16)


def test_parameters_in_half_precision(training, device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)
    arguments['weight'] = arguments['weight'].half()
    arguments['bias'] = arguments['bias'].half()
    # Its running statistics are half too, which only evaluation reads.
    assert_right(arguments, training, 'none')


@pytest.fixture
def with_limits(monkeypatch):
    """Shares out maps for other limits of the device."""

    def change(**limits):
        new = common.LIMITS._replace(**limits)
        monkeypatch.setattr(common, 'LIMITS', new)
        clear()

    def clear():
        for function in (sums.sweep, sums._part_tile, common.split_rows):
            function.cache_clear()

    yield change
    monkeypatch.undo()
    clear()


@pytest.mark.parametrize('channels', [20, 130])
def test_any_number_of_programs(
    channels, training, device, with_limits, monkeypatch
):
    with_limits(multiprocessors=0, partial_sums=6, per_thread=2)
    monkeypatch.setattr(family, '_part_tile', lambda parts: (2, 1024))
    arguments = norm_arguments((3, 5, 7, channels), torch.float32, device)
    assert_right(arguments, training, 'gelu')
    running = running_of(channels, device)
    expected = follow(arguments, running)
    train(arguments, running)
    for new, old in zip(running, expected, strict=True):
        assert relative_error(new, old) < 1e-6


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_running_statistics(shape, dtype, device):
    arguments = norm_arguments(shape, dtype, device)
    running = running_of(shape[-1], device)
    if arguments['x'].numel() == 0:
        wide = [x.double() for x in running]
    else:
        wide = follow(arguments, running)
    versions = [x._version for x in running]
    train(arguments, running)
    for new, expected in zip(running, wide, strict=True):
        assert relative_error(new, expected) < 1e-6
    for x, version in zip(running, versions, strict=True):
        assert (x._version > version) == (arguments['x'].numel() > 0)


def test_evaluation_moves_nothing(device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)
    running = running_of(48, device)
    count = torch.tensor(7, device=device)
    before = [x.clone() for x in (*running, count)]
    versions = [x._version for x in (*running, count)]
    batch_norm_act(
        **arguments,
        running_mean=running[0],
        running_var=running[1],
        training=False,
        momentum=0.1,
        eps=1e-5,
        activation='none',
        dtype=torch.float32,
        num_batches_tracked=count,
    )
    for new, old in zip((*running, count), before, strict=True):
        assert torch.equal(new, old)
    assert [x._version for x in (*running, count)] == versions


@pytest.mark.parametrize('layout', ['half', 'gaps'])
def test_running_statistics_of_other_layouts(layout, device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)
    running = running_of(48, device)
    if layout == 'half':
        running = [x.half() for x in running]
    else:
        running = [x.repeat_interleave(2)[::2] for x in running]
    wide = follow(arguments, running)
    train(arguments, running)
    for new, expected in zip(running, wide, strict=True):
        assert relative_error(new, expected.to(new.dtype)) < 1e-3


def test_without_running_statistics(device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)

    def kernel(x, weight, bias):
        return batch_norm_act(
            x, weight, bias, None, None, True, 0.1, 1e-5, 'none', x.dtype
        )

    expected = results(kernel_of(True, 'none'), arguments)
    for name, value in results(kernel, arguments).items():
        assert torch.equal(value, expected[name]), name


def test_gradients_on_and_off(training, device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)
    kernel = kernel_of(training, 'gelu')
    expected = kernel(**arguments)
    with torch.no_grad():
        assert torch.equal(kernel(**arguments), expected)


@pytest.mark.parametrize('shape', [(4, 9, 11, 20), (2, 17, 19, 1)])
def test_large_mean_and_small_variance(shape, device, with_limits):
    with_limits(per_thread=4)
    arguments = norm_arguments(shape, torch.float32, device)
    x = (normal(*shape, dtype=torch.float64) / 10 + 100).float()
    # Far from the others, and where a program takes its origin.
    x[0, 0, 0] = 103
    arguments['x'] = x.to(device)
    exact = arguments['x'].double().flatten(0, 2)
    mean, var = running_of(shape[-1], device)
    train(arguments, (mean, var), momentum=1.0)
    assert relative_error(mean, exact.mean(0)) < 1e-7
    assert relative_error(var, exact.var(0)) < 1e-5
    assert_right(arguments, True, 'none')


def test_nan_stays_visible(device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)
    arguments['x'][1, 2, 3, 7] = torch.nan
    running = running_of(48, device)
    y = train(arguments, running, activation='relu')
    for x in (y, *running):
        assert x[..., 7].isnan().all()
        assert not x[..., 8:].isnan().any()


def test_map_with_strides(training, device):
    x = norm_arguments((2, 3, 5, 96), torch.float32, device)['x']
    for view in (x[:, :, 1:], x[..., :48], x.transpose(1, 2), x.mT):
        arguments = norm_arguments(view.shape, torch.float32, device)
        assert_right(arguments | {'x': view}, training, 'gelu')
        y = kernel_of(training, 'gelu')(**arguments | {'x': view})
        assert y.is_contiguous()


def test_gradient_that_is_not_dense(training, device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]

    def gradients(function):
        y = function(*leaves)
        # A gradient of stride 0 and one of half the channels.
        return [
            g
            for z in (y.sum(), y[..., ::2].sum())
            for g in torch.autograd.grad(z, leaves, retain_graph=True)
        ]

    pairs = zip(
        gradients(kernel_of(training, 'relu')),
        gradients(reference_of(training, 'relu')),
        strict=True,
    )
    for actual, expected in pairs:
        assert (actual - expected).norm() < 1e-5 * (1 + expected.norm())


def test_two_runs_are_the_same(training, device):
    arguments = norm_arguments((2, 9, 9, 48), torch.bfloat16, device)
    kernel = kernel_of(training, 'gelu')
    first, second = (results(kernel, arguments) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_one_value_per_channel_is_refused(device):
    arguments = norm_arguments((1, 1, 1, 48), torch.float32, device)
    running = running_of(48, device)
    count = torch.tensor(0, device=device)
    with pytest.raises(
        ValueError, match=r'Expected more than 1 value per channel.*48\)'
    ):
        train(arguments, running, count=count)
    assert count.item() == 0
    for new, old in zip(running, running_of(48, device), strict=True):
        assert torch.equal(new, old)


@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_wrong_shape_is_refused(name, device):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, device)
    arguments[name] = arguments[name][:7]
    with pytest.raises(AssertionError):
        train(arguments, running_of(48, device))


def test_training_counts_one_a_batch(device):
    """As torch does: an integer, in place, seen by autograd."""
    arguments = norm_arguments((2, 3, 5, 130), torch.float32, device)
    count = torch.tensor(2**31 - 1, device=device)
    for step in range(1, 4):
        version = count._version
        train(arguments, running_of(130, device), count=count)
        assert count.dtype == torch.int64 and count.shape == ()
        assert count.item() == 2**31 - 1 + step
        assert count._version == version + 1


def test_an_empty_batch_counts(device):
    arguments = norm_arguments((0, 3, 5, 130), torch.float32, device)
    count = torch.tensor(0, device=device)
    train(arguments, running_of(130, device), count=count)
    assert count.item() == 1


def test_a_batch_without_running_statistics_counts(device):
    arguments = norm_arguments((2, 3, 5, 130), torch.float32, device)
    count = torch.tensor(0, device=device)
    train(arguments, (None, None), count=count)
    assert count.item() == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_captured_step_counts_one_a_replay():
    arguments = norm_arguments((2, 3, 5, 130), torch.float32, 'cuda')
    running = running_of(130, 'cuda')
    count = torch.tensor(0, device='cuda')
    train(arguments, running, count=count)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(arguments, running, count=count)
    for _ in range(3):
        graph.replay()
    assert count.item() == 4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu(training):
    arguments = norm_arguments((2, 3, 5, 48), torch.float32, 'cuda:1')
    assert_right(arguments, training, 'relu')


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
def test_more_elements_than_an_int32_counts():
    rows = 2**31 // 64 + 6
    x = torch.zeros(1, 2, rows // 2, 64, dtype=torch.bfloat16, device='cuda')
    tail = normal(3, 64).to(x)
    x[0, 1, -3:] = tail
    weight, bias = torch.ones(2, 64).cuda().requires_grad_()
    y = batch_norm_act(
        x.requires_grad_(), weight, bias, *running_of(64, 'cuda'), True, 0.1,
        1.0, 'none', x.dtype,
    )  # fmt: skip
    assert relative_error(y[0, 1, -3:], tail + 1) < 1e-2
    dx, dbias = torch.autograd.grad(y[0, 1, -3:].sum(), (x, bias))
    assert relative_error(dx[0, 1, -3:], torch.ones_like(tail)) < 1e-2
    assert torch.equal(dbias, torch.full_like(dbias, 3.0))


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', [(1, 1, 1, 16), (2, 7, 9, 24)])
def test_fixed_norm_and_residual(shape, dtype, device):
    from evmamba_mm.ops.triton.batch_norm import batch_norm_add_inference

    *_, channels = shape
    x, residual = (
        normal(*shape, dtype=dtype, device=device, seed=i) for i in range(2)
    )
    weight, bias, mean = (
        normal(channels, device=device, seed=2 + i) for i in range(3)
    )
    var = normal(channels, device=device, seed=5).square()
    y = batch_norm_add_inference(x, weight, bias, mean, var, 1e-3, residual)
    scale = weight.double() / (var.double() + 1e-3).sqrt()
    exact = (x.double() - mean) * scale + bias + residual
    assert y.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    assert relative_error(y, exact) < bound
