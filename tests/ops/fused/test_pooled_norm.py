from functools import partial

import pytest
import torch

from evmamba_mm.ops.fused import layer_norm, pooled_layer_norm, pooled_norm
from evmamba_mm.ops.fused.pooled_norm import pooled_layer_norms

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
    'one-cell': (3, 1, 1, 96),
    'one-channel': (2, 3, 3, 1),
    'prime-channels': (2, 3, 4, 131),
    'wide': (1, 2, 2, 1536),
    'no-entry': (0, 2, 2, 48),
}


def pooled_arguments(shape, dtype=torch.float64, device='cpu'):
    make = partial(normal, device=device)
    parameters = torch.promote_types(dtype, torch.float32)
    return dict(
        x=make(*shape, dtype=dtype) * 3 + 1,
        weight=make(shape[-1], dtype=parameters, seed=1),
        bias=make(shape[-1], dtype=parameters, seed=2),
    )


def test_twin_follows_the_definition():
    arguments = pooled_arguments((2, 3, 4, 5))
    y = pooled_layer_norm(**arguments, eps=0.1)
    cells = layer_norm(**arguments, eps=0.1).flatten(1, 2)
    torch.testing.assert_close(y, cells.sum(1) / 12)


def test_twin_passes_gradcheck():
    arguments = pooled_arguments((2, 2, 3, 4))
    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(pooled_layer_norm, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(shape, dtype, device):
    arguments = pooled_arguments(shape, dtype, device)
    assert_kernel_is_right(pooled_layer_norm, arguments, dtype)


@pytest.mark.parametrize('few', [False, True], ids=['many', 'few'])
@pytest.mark.parametrize('channels', [100, 1030])
def test_any_number_of_programs(channels, few, device, monkeypatch):
    from evmamba_mm.ops.fused import pooled_norm_triton, tiles

    if few:
        monkeypatch.setattr(tiles, '_MULTIPROCESSORS', 0)
        monkeypatch.setattr(pooled_norm_triton, '_MOST_PARTIAL_SUMS', 1)
    shape = (2, 5, 7, channels)
    arguments = pooled_arguments(shape, torch.float32, device)
    assert_kernel_is_right(pooled_layer_norm, arguments, torch.float32)


def test_map_with_strides(device):
    arguments = pooled_arguments((2, 3, 5, 96), torch.float32, device)
    x = arguments['x']
    for view in (x[:, :, 1:], x[..., :48], x.transpose(1, 2), x.mT):
        parameters = pooled_arguments(view.shape, torch.float32, device)
        assert_kernel_is_right(
            pooled_layer_norm, parameters | {'x': view}, torch.float32
        )


def test_parameters_in_half_precision(device):
    arguments = pooled_arguments((2, 3, 5, 48), torch.float32, device)
    arguments['weight'] = arguments['weight'].half()
    arguments['bias'] = arguments['bias'].half()
    assert_kernel_is_right(pooled_layer_norm, arguments, torch.float32)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_result_stays_fp32_under_autocast(backend, device):
    arguments = pooled_arguments((2, 3, 5, 48), torch.bfloat16, device)
    expected = pooled_layer_norm(
        **{name: x.double() for name, x in arguments.items()}
    )
    with torch.autocast(device, torch.bfloat16):
        y = pooled_layer_norm(**arguments, backend=backend)
    assert y.dtype == torch.float32
    assert relative_error(y, expected) < 1e-5


def test_two_runs_are_the_same(device):
    arguments = pooled_arguments((2, 9, 9, 48), torch.bfloat16, device)
    op, dtype = pooled_layer_norm, torch.bfloat16
    assert_same(
        results(op, arguments, 'triton', dtype),
        results(op, arguments, 'triton', dtype),
    )


@pytest.mark.parametrize('maps', [1, 2])
def test_opcheck(maps, device):
    make = partial(normal, device=device)
    first = make(2, 3, 5, 48, dtype=torch.bfloat16)
    second = make(2, 3, 5, 48, dtype=torch.bfloat16, seed=1)
    second = second if maps == 2 else None
    weight = make(48, dtype=torch.float32, seed=2)
    bias = make(48, dtype=torch.float32, seed=3)
    leaves = [
        None if x is None else x.clone().requires_grad_()
        for x in (first, second, weight, bias)
    ]
    torch.library.opcheck(pooled_norm._pooled_norm, (*leaves, 1e-5))
    dout = make(2 * maps, 48, dtype=torch.float32)
    torch.library.opcheck(
        pooled_norm._pooled_norm_backward,
        (dout, first, second, dout, weight, 1e-5),
    )


def test_compiles_into_one_graph(device):
    arguments = pooled_arguments((2, 3, 5, 48), torch.float32, device)
    compiled = torch.compile(
        pooled_layer_norm, fullgraph=True, backend='aot_eager'
    )
    assert_same(
        results(compiled, arguments, 'triton', torch.float32),
        results(pooled_layer_norm, arguments, 'triton', torch.float32),
    )


def several(weight, bias, backend='auto', **maps):
    return pooled_layer_norms(list(maps.values()), weight, bias, 0.1, backend)


def several_arguments(maps, shape, dtype=torch.float64, device='cpu'):
    arguments = pooled_arguments(shape, dtype, device)
    arguments['map_0'] = arguments.pop('x')
    for i in range(1, maps):
        arguments[f'map_{i}'] = normal(
            *shape, dtype=dtype, device=device, seed=i + 10
        )
    return arguments


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize('maps', [1, 2, 3])
def test_maps_are_stacked(maps, backend, device):
    arguments = several_arguments(maps, (2, 3, 5, 48), torch.float32, device)
    together = several(**arguments, backend=backend)
    weight, bias = arguments.pop('weight'), arguments.pop('bias')
    alone = [
        pooled_layer_norm(x, weight, bias, 0.1, backend)
        for x in arguments.values()
    ]
    assert torch.equal(together, torch.cat(alone))


def test_twin_of_maps_passes_gradcheck():
    leaves = [
        x.requires_grad_() for x in several_arguments(2, (2, 2, 1, 3)).values()
    ]
    weight, bias, *maps = leaves

    def op(weight, bias, *maps):
        return pooled_layer_norms(maps, weight, bias)

    assert torch.autograd.gradcheck(op, (weight, bias, *maps))


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('maps', [2, 3])
def test_kernel_of_maps(maps, shape, dtype, device):
    arguments = several_arguments(maps, shape, dtype, device)
    assert_kernel_is_right(several, arguments, dtype)


def test_maps_may_differ_in_dtype_and_layout(device):
    arguments = several_arguments(2, (2, 3, 5, 48), torch.float32, device)
    arguments['map_1'] = (
        arguments['map_1'].to(torch.bfloat16).transpose(1, 2).contiguous()
    ).transpose(1, 2)
    wide = {name: x.double() for name, x in arguments.items()}
    kernel = results(several, arguments, 'triton', torch.float32)
    exact = results(several, wide, 'torch', torch.float32)
    for name, value in kernel.items():
        bound = 1e-2 if value.dtype == torch.bfloat16 else 1e-5
        assert relative_error(value, exact[name]) < bound, name
        assert name == 'output' or value.dtype == arguments[name].dtype


def test_two_maps_of_one_layout_share_a_launch(device, monkeypatch):
    from evmamba_mm.ops.fused import pooled_norm_triton as module

    calls = []
    for name in ('_sum', '_differentiate'):
        function = getattr(module, name)

        def counted(*arguments, name=name, function=function):
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(module, name, counted)
    arguments = several_arguments(2, (2, 3, 5, 48), torch.float32, device)
    results(several, arguments, 'triton', torch.float32)
    assert calls == ['_sum', '_differentiate']
    calls.clear()
    arguments['map_1'] = arguments['map_1'].half()
    results(several, arguments, 'triton', torch.float32)
    assert calls == ['_sum'] * 2 + ['_differentiate'] * 2


def test_maps_compile_into_one_graph(device):
    arguments = several_arguments(2, (2, 3, 5, 48), torch.float32, device)
    compiled = torch.compile(several, fullgraph=True, backend='aot_eager')
    assert_same(
        results(compiled, arguments, 'triton', torch.float32),
        results(several, arguments, 'triton', torch.float32),
    )


def test_every_value_is_written(device, monkeypatch):
    arguments = several_arguments(2, (2, 5, 7, 131), torch.float32, device)
    expected = results(several, arguments, 'triton', torch.float32)

    def filled(make):
        def call(*arguments, **options):
            x = make(*arguments, **options)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return call

    for owner, name in (
        (torch, 'empty'),
        (torch, 'empty_like'),
        (torch.Tensor, 'new_empty'),
    ):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
    assert_same(results(several, arguments, 'triton', torch.float32), expected)


def test_no_maps_are_refused():
    weight = torch.ones(48)
    with pytest.raises(ValueError, match='at least one map'):
        pooled_layer_norms([], weight, weight)


def test_maps_of_two_shapes_are_refused():
    arguments = several_arguments(2, (2, 3, 5, 48))
    arguments['map_1'] = arguments['map_1'][:, 1:]
    with pytest.raises(ValueError, match='one shape, got .*3.* and .*2'):
        several(**arguments)


@pytest.mark.parametrize('shape', [(3, 5, 48), (2, 0, 5, 48)])
def test_no_map_is_refused(shape):
    arguments = pooled_arguments(shape)
    with pytest.raises(ValueError, match='x must be a map'):
        pooled_layer_norm(**arguments)


@pytest.mark.parametrize('name', ['weight', 'bias'])
def test_wrong_shape_is_named(name):
    arguments = pooled_arguments((2, 3, 5, 48))
    arguments[name] = arguments[name][:7]
    with pytest.raises(ValueError, match=f'{name} must have shape .*7'):
        pooled_layer_norm(**arguments)


def test_without_eps(device):
    """Rows beyond the map have no variance."""
    values = dict(
        x=normal(1, 3, 3, 7, dtype=torch.float32, device=device),
        weight=normal(7, dtype=torch.float32, device=device, seed=1),
        bias=normal(7, dtype=torch.float32, device=device, seed=2),
    )

    def op(x, weight, bias, backend):
        return pooled_layer_norm(x, weight, bias, 0.0, backend)

    assert_kernel_is_right(op, values, torch.float32)
