from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import batch_norm
from evmamba_mm.ops.fused.batch_norm import ACTIVATIONS, batch_norm_act

from ..scan_cases import relative_error
from .kernel_cases import (
    DTYPES,
    assert_kernel_is_right,
    assert_same,
    normal,
    results,
)

SHAPES = {
    'odd-map': (2, 5, 7, 48),
    'many-rows': (3, 13, 11, 96),
    'one-channel': (2, 9, 31, 1),
    'prime-channels': (2, 3, 4, 131),
    'wide': (2, 3, 3, 768),
    'wider': (1, 2, 2, 1536),
    'three-rows': (3, 1, 1, 48),
    'no-entry': (0, 2, 2, 48),
}


def arguments_of(shape, dtype=torch.float64, device='cpu'):
    """A map whose channels are far from mean 0 and variance 1."""
    make = partial(normal, device=device)
    wide = torch.promote_types(dtype, torch.float32)
    x = make(*shape) * 3 + make(shape[-1], seed=4)
    return dict(
        x=x.to(dtype),
        weight=make(shape[-1], dtype=wide, seed=1),
        bias=make(shape[-1], dtype=wide, seed=2),
    )


def running_of(channels, device='cpu', dtype=torch.float64):
    mean = normal(channels, seed=3, device=device)
    return mean.to(dtype), (mean.square() + 4).to(dtype)


def op_of(training, activation, momentum=0.1, eps=1e-5):
    """The op with running statistics that no other call sees."""

    def op(x, weight, bias, backend):
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
            backend,
        )

    return op


@pytest.fixture(params=[True, False], ids=['training', 'evaluation'])
def training(request):
    return request.param


@pytest.fixture(params=ACTIVATIONS)
def activation(request):
    return request.param


@pytest.mark.parametrize('eps', [1e-5, 0.5])
def test_twin_follows_the_definition(training, activation, eps):
    arguments = arguments_of((2, 3, 4, 5))
    x, weight, bias = arguments.values()
    mean, variance = running_of(5)
    if training:
        mean = x.sum((0, 1, 2)) / 24
        variance = ((x - mean) ** 2).sum((0, 1, 2)) / 24
    y = (x - mean) / (variance + eps) ** 0.5 * weight + bias
    if activation == 'relu':
        y = y * (y > 0)
    if activation == 'gelu':
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
    op = op_of(training, activation, eps=eps)
    torch.testing.assert_close(op(**arguments, backend='torch'), y)


def test_twin_passes_gradcheck(training, activation):
    op = partial(op_of(training, activation), backend='torch')
    arguments = arguments_of((2, 2, 3, 2))
    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(shape, dtype, training, device):
    op = op_of(training, 'relu')
    arguments = arguments_of(shape, dtype, device)
    assert_kernel_is_right(op, arguments, dtype)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_kernel_with_each_activation(training, activation, dtype, device):
    op = op_of(training, activation)
    arguments = arguments_of((2, 3, 5, 20), dtype, device)
    assert_kernel_is_right(op, arguments, dtype)


@pytest.mark.parametrize('channels', [20, 192])
def test_any_number_of_programs(channels, training, device, monkeypatch):
    from evmamba_mm.ops.fused import batch_statistics_triton, tiles

    monkeypatch.setattr(batch_statistics_triton, 'MOST_PROGRAMS', 6)
    monkeypatch.setattr(batch_statistics_triton, '_PER_THREAD', 1)
    monkeypatch.setattr(batch_statistics_triton, '_MOST_PARTS', 2)
    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', 0)
    arguments = arguments_of((3, 5, 9, channels), torch.float32, device)
    op = op_of(training, 'gelu')
    assert_kernel_is_right(op, arguments, torch.float32)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_running_statistics(shape, dtype, device):
    arguments = arguments_of(shape, dtype, device)
    running = running_of(shape[-1], device, torch.float32)
    wide = [x.double() for x in running]
    F.batch_norm(
        arguments['x'].double().permute(0, 3, 1, 2), *wide, None, None, True
    )
    versions = [x._version for x in running]
    batch_norm_act(**arguments, **named(running), backend='triton')
    for new, expected in zip(running, wide, strict=True):
        assert relative_error(new, expected) < 1e-6
    assert [x._version for x in running] > versions


def named(running, training=True):
    mean, variance = running
    return dict(running_mean=mean, running_var=variance, training=training)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_evaluation_leaves_running_statistics(backend, device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    running = running_of(48, device, torch.float32)
    before = [x.clone() for x in running]
    batch_norm_act(**arguments, **named(running, False), backend=backend)
    for new, old in zip(running, before, strict=True):
        assert torch.equal(new, old)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_running_statistics_of_other_layouts(backend, device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    for make in (torch.Tensor.half, lambda x: x.repeat_interleave(2)[::2]):
        running = [make(x) for x in running_of(48, device, torch.float32)]
        wide = [x.double() for x in running]
        batch_norm_act(**arguments, **named(running), backend=backend)
        x = arguments['x'].double().permute(0, 3, 1, 2)
        F.batch_norm(x, *wide, None, None, True)
        for new, expected in zip(running, wide, strict=True):
            assert relative_error(new, expected.to(new.dtype)) < 1e-3


def test_without_running_statistics(device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)

    def op(x, weight, bias, backend):
        return batch_norm_act(
            x, weight, bias, None, None, True, backend=backend
        )

    assert_kernel_is_right(op, arguments, torch.float32)
    assert_same(
        results(op, arguments, 'triton', torch.float32),
        results(op_of(True, 'none'), arguments, 'triton', torch.float32),
    )


@pytest.mark.parametrize('shape', [(4, 9, 11, 20), (2, 17, 19, 1)])
def test_large_mean_and_small_variance(shape, device, monkeypatch):
    from evmamba_mm.ops.fused import batch_statistics_triton as kernels

    monkeypatch.setattr(kernels, '_PER_THREAD', 2)
    arguments = arguments_of(shape, torch.float32, device)
    arguments['x'] = (normal(*shape) / 10 + 100).float().to(device)
    # Far from the others, and where a program takes its origin.
    arguments['x'][0, 0, 0] = 103
    exact = arguments['x'].double().flatten(0, 2)
    running = running_of(shape[-1], device, torch.float32)
    mean, variance = kernels.statistics(arguments['x'], *running, 0.1)
    assert relative_error(mean, exact.mean(0)) < 1e-7
    assert relative_error(variance, exact.var(0, correction=0)) < 1e-5
    op = op_of(True, 'none')
    assert_kernel_is_right(op, arguments, torch.float32)


def test_nan_stays_visible(device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    arguments['x'][1, 2, 3, 7] = torch.nan
    running = running_of(48, device, torch.float32)
    y = batch_norm_act(
        **arguments, **named(running), activation='relu', backend='triton'
    )
    for x in (y, *running):
        assert x[..., 7].isnan().all()
        assert not x[..., 8:].isnan().any()


@pytest.mark.parametrize('nan', [False, True], ids=['as-it-is', 'poisoned'])
def test_map_with_strides(nan, training, device, monkeypatch):
    if nan:
        empty = torch.empty
        monkeypatch.setattr(
            torch, 'empty', lambda *a, **k: empty(*a, **k).fill_(torch.nan)
        )
    arguments = arguments_of((2, 3, 5, 96), torch.float32, device)
    x = arguments['x']
    for view in (x[:, :, 1:], x[..., :48], x.transpose(1, 2), x.mT):
        parameters = arguments_of(view.shape, torch.float32, device)
        assert_kernel_is_right(
            op_of(training, 'gelu'), parameters | {'x': view}, torch.float32
        )


def test_gradient_that_is_not_dense(training, device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]
    op = op_of(training, 'relu')

    def gradients(backend):
        y = op(*leaves, backend=backend)
        # A gradient of stride 0 and one of half the channels.
        sums = (y.sum(), y[..., ::2].sum())
        return [
            g for s in sums for g in torch.autograd.grad(s, leaves, None, True)
        ]

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for kernel, twin in pairs:
        assert (kernel - twin).norm() < 1e-5 * (1 + twin.norm())


def test_parameters_in_half_precision(training, device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    arguments['weight'] = arguments['weight'].half()
    arguments['bias'] = arguments['bias'].half()
    # Its running statistics are half too, which only evaluation reads.
    op = op_of(training, 'none')
    assert_kernel_is_right(op, arguments, torch.float32)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_autocast_decides_the_dtype(training, backend, device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    op = op_of(training, 'gelu')
    expected = op(**arguments, backend='torch')
    with torch.autocast(device, torch.float16):
        y = op(**arguments, backend=backend)
    assert y.dtype == torch.float16
    assert relative_error(y, expected.half()) < 1e-4


def test_two_runs_are_the_same(training, device):
    arguments = arguments_of((2, 9, 9, 48), torch.bfloat16, device)
    op = op_of(training, 'gelu')
    runs = [results(op, arguments, 'triton', torch.bfloat16) for _ in range(2)]
    assert_same(*runs)


@pytest.mark.parametrize('tracked', [True, False])
def test_opcheck_of_statistics(tracked, device):
    x = normal(2, 3, 5, 48, dtype=torch.float32, device=device)
    running = running_of(48, device, torch.float32)
    torch.library.opcheck(
        batch_norm._batch_statistics,
        (x, *(running if tracked else (None, None)), 0.1),
    )


def test_opcheck(training, device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    tensors = [x.clone() for x in arguments.values()]
    fixed = running_of(48, device, torch.float32)
    options = (training, 1e-5, 'gelu')
    dy = torch.ones_like(tensors[0])
    torch.library.opcheck(
        batch_norm._batch_norm_act_backward, (dy, *tensors, *fixed, *options)
    )
    for x in tensors:
        x.requires_grad_()
    torch.library.opcheck(
        batch_norm._batch_norm_act,
        (*tensors, *fixed, *options, torch.bfloat16),
    )


def test_compiles_into_one_graph(training, device):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, device)
    compiled = torch.compile(
        batch_norm_act, fullgraph=True, backend='aot_eager'
    )

    def run(function):
        running = running_of(48, device, torch.float32)

        def op(x, weight, bias, backend):
            return function(
                x, weight, bias, *running, training, backend=backend
            )

        found = results(op, arguments, 'triton', torch.float32)
        return found | named(running, torch.tensor(training))

    assert_same(run(compiled), run(batch_norm_act))


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_one_value_per_channel_is_refused(backend, device):
    op = op_of(True, 'none')
    arguments = arguments_of((1, 1, 1, 48), torch.float32, device)
    with pytest.raises(ValueError, match=r'more than one value.*48\)'):
        op(**arguments, backend=backend)
    op = op_of(False, 'none')
    assert op(**arguments, backend=backend).isfinite().all()


@pytest.mark.parametrize('name', ['weight', 'running_var'])
def test_wrong_shape_is_named(name):
    arguments = arguments_of((2, 3, 5, 48)) | named(running_of(48))
    arguments[name] = arguments[name][:7]
    with pytest.raises(ValueError, match=f'{name} must have shape .*7'):
        batch_norm_act(**arguments)


def test_wrong_arguments_are_refused():
    arguments = arguments_of((2, 3, 5, 48))
    mean, variance = running_of(48)
    with pytest.raises(ValueError, match='running_mean and running_var'):
        batch_norm_act(**arguments, **named((None, None), False))
    with pytest.raises(ValueError, match='running_mean and running_var'):
        batch_norm_act(**arguments, **named((mean, None)))
    with pytest.raises(ValueError, match="relu, gelu, got 'silu'"):
        batch_norm_act(**arguments, **named((mean, variance)),
                       activation='silu')  # fmt: skip
    arguments['x'] = arguments['x'][0]
    with pytest.raises(ValueError, match='x must be a map'):
        batch_norm_act(**arguments, **named((mean, variance)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu(training):
    arguments = arguments_of((2, 3, 5, 48), torch.float32, 'cuda:1')
    op = op_of(training, 'relu')
    assert_kernel_is_right(op, arguments, torch.float32)


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
    running = running_of(64, 'cuda', torch.float32)
    y = batch_norm_act(
        x.requires_grad_(), weight, bias, *running, True, eps=1.0
    )
    assert relative_error(y[0, 1, -3:], tail + 1) < 1e-2
    dx, dbias = torch.autograd.grad(y[0, 1, -3:].sum(), (x, bias))
    assert relative_error(dx[0, 1, -3:], torch.ones_like(tail)) < 1e-2
    assert torch.equal(dbias, torch.full_like(dbias, 3.0))
