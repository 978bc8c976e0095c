from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import gated_residual

from ..scan_cases import relative_error
from .gated_cases import (
    EPS,
    FIXED,
    FLOAT,
    GATES,
    MAPS,
    block_arguments,
    op,
    two_ops,
    wide,
)
from .kernel_cases import (
    DTYPES,
    assert_kernel_is_right,
    assert_same,
    normal,
    results,
)

# Maps and hidden channels.
CASES = {
    'odd-map': ((2, 5, 7, 48), 6),
    'one-cell': ((3, 1, 1, 96), 12),
    'one-row': ((2, 1, 7, 20), 2),
    'narrow': ((1, 13, 5, 24), 3),
    'one-channel': ((2, 9, 7, 1), 1),
    'prime-channels': ((2, 3, 4, 131), 7),
    'most-weights': ((1, 2, 3, 200), 25),
    'too-many-weights': ((1, 2, 3, 384), 48),
    'no-entry': ((0, 2, 2, 48), 6),
}


@pytest.mark.parametrize('scaled', [True, False])
def test_twin_follows_the_definition(scaled):
    arguments = block_arguments(dtype=torch.float64, scaled=scaled)
    residual, a, b, *parameters, scale = arguments.values()
    weight, bias, reduce, reduce_bias, expand, expand_bias = parameters
    expected = residual
    for x in (a, b):
        pooled = F.layer_norm(x, (24,), weight, bias, EPS).mean((1, 2))
        hidden = F.gelu(F.linear(pooled, reduce, reduce_bias))
        gate = F.linear(hidden, expand, expand_bias).sigmoid()
        update = x * gate[:, None, None]
        if scaled:
            update = update * scale[:, None, None, None]
        expected = expected + update
    torch.testing.assert_close(op(**arguments), expected)


def test_twin_passes_gradcheck():
    arguments = block_arguments((2, 2, 1, 3), 2, torch.float64)
    scale = arguments.pop('scale')
    leaves = [x.requires_grad_() for x in arguments.values()]

    def function(*values):
        return op(**dict(zip(arguments, values, strict=True)), scale=scale)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape, hidden', CASES.values(), ids=CASES)
def test_kernel(shape, hidden, dtype, device):
    arguments = block_arguments(shape, hidden, dtype, device)
    assert_kernel_is_right(op, arguments, dtype, FIXED)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_kernel_without_scale(dtype, device):
    arguments = block_arguments(dtype=dtype, device=device, scaled=False)
    assert_kernel_is_right(op, arguments, dtype, FIXED)


def test_same_as_the_two_ops(device):
    arguments = block_arguments(device=device)
    once = results(op, arguments, 'triton', FLOAT, FIXED)
    twice = results(two_ops, arguments, 'triton', FLOAT, FIXED)
    for name, value in once.items():
        assert value.dtype == twice[name].dtype, name
        assert relative_error(value, twice[name]) < 1e-5, name


@pytest.mark.parametrize('many', [False, True], ids=['few', 'many'])
@pytest.mark.parametrize('channels', [100, 300])
def test_any_number_of_programs(channels, many, device, monkeypatch):
    from evmamba_mm.ops.fused import gated_residual_triton, tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', 10**6 if many else 0)
    if not many:
        for name in ('_MOST_PARTIAL_SUMS', '_FEW_PARTIAL_SUMS'):
            monkeypatch.setattr(gated_residual_triton, name, 1)
    tiles.split_rows.cache_clear()
    arguments = block_arguments((2, 31, 13, channels), 5, FLOAT, device)
    assert_kernel_is_right(op, arguments, FLOAT, FIXED)
    tiles.split_rows.cache_clear()


def test_without_eps(device):
    arguments = block_arguments((1, 3, 5, 24), 3, FLOAT, device)
    exactly = partial(gated_residual, eps=0.0)
    assert_kernel_is_right(exactly, arguments, FLOAT, FIXED)


def test_any_number_of_entries(device):
    arguments = block_arguments((150, 1, 2, 20), 3, FLOAT, device)
    assert_kernel_is_right(op, arguments, FLOAT, FIXED)


VIEWS = {
    'rows': lambda x: x[:, 1:],
    'columns': lambda x: x[:, :, 1:],
    'channels': lambda x: x[..., 24:],
    'transposed': lambda x: x.transpose(1, 2),
    'channels-first': lambda x: (
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    ),
}


def contiguous(x):
    return x.contiguous()


@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_maps_with_strides(view, device):
    whole = block_arguments((2, 4, 6, 48), 3, FLOAT, device)
    maps = [whole[name] for name in MAPS]
    arguments = block_arguments(view(maps[0]).shape, 3, FLOAT, device)
    for views in (
        (view, view, view),
        (contiguous, view, lambda x: view(x).contiguous()),
        (contiguous, lambda x: view(x).contiguous(), view),
    ):
        made = (
            f(x) if f is not contiguous else view(x).contiguous()
            for f, x in zip(views, maps, strict=True)
        )
        arguments |= dict(zip(MAPS, made, strict=True))
        assert_kernel_is_right(op, arguments, FLOAT, FIXED)


@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_gradient_with_strides(view, device):
    wide_dout = normal(2, 4, 6, 48, dtype=FLOAT, device=device)
    dout = view(wide_dout)
    arguments = block_arguments(dout.shape, 3, FLOAT, device)
    scale = arguments.pop('scale')
    leaves = {name: x.requires_grad_() for name, x in arguments.items()}
    y = op(**leaves, scale=scale, backend='triton')
    inputs = list(leaves.values())
    values = torch.autograd.grad(y, inputs, dout, retain_graph=True)
    expected = torch.autograd.grad(y, inputs, dout.contiguous())
    # Compiled for another stride, it may round in another way.
    for value, other in zip(values, expected, strict=True):
        assert relative_error(value, other) < 1e-5


def test_gradient_of_one_value(device):
    arguments = block_arguments(device=device)
    scale = arguments.pop('scale')

    def gradients(backend):
        leaves = {
            name: x.detach().requires_grad_() for name, x in arguments.items()
        }
        y = op(**leaves, scale=scale, backend=backend).sum()
        return torch.autograd.grad(y, list(leaves.values()))

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for value, expected in pairs:
        assert relative_error(value, expected) < 1e-5


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize(
    'dtypes',
    [
        (FLOAT, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, FLOAT, FLOAT),
        (torch.float16, torch.float16, FLOAT),
        (FLOAT, FLOAT, torch.bfloat16),
    ],
    ids=['wide-stream', 'narrow-stream', 'wide-second', 'narrow-second'],
)
def test_maps_of_several_dtypes(dtypes, backend, device):
    arguments = block_arguments(device=device)
    for name, dtype in zip(MAPS, dtypes, strict=True):
        arguments[name] = arguments[name].to(dtype)
    values = results(op, arguments, backend, FLOAT, FIXED)
    assert values['output'].dtype == torch.promote_types(*dtypes[:2])
    exact = results(op, wide(arguments), 'torch', FLOAT, FIXED)
    narrow = min((x.itemsize, str(x)) for x in dtypes)[1] != 'torch.float32'
    for name, value in values.items():
        if name != 'output':
            assert value.dtype == arguments[name].dtype, name
        # What goes out is rounded, and so is what comes in then.
        bound = 2e-2 if narrow else 1e-5
        assert relative_error(value, exact[name]) < bound, name


def test_parameters_of_any_dtype_and_layout(device):
    arguments = block_arguments(device=device, parameters=torch.float16)
    for name in ('reduce_weight', 'expand_weight'):
        arguments[name] = arguments[name].mT.clone().mT
    arguments['norm_bias'] = arguments['norm_bias'].float()
    arguments['scale'] = arguments['scale'][:1].expand(2)
    values = results(op, arguments, 'triton', FLOAT, FIXED)
    exact = results(op, wide(arguments), 'torch', FLOAT, FIXED)
    for name, value in values.items():
        assert value.dtype == arguments.get(name, values['output']).dtype, name
        bound = 1e-3 if value.dtype == torch.float16 else 1e-5
        assert relative_error(value, exact[name]) < bound, name


def test_autocast_does_not_narrow_the_gates(device):
    arguments = block_arguments(dtype=torch.bfloat16, device=device)
    exact = results(op, wide(arguments), 'torch', torch.bfloat16, FIXED)
    with torch.autocast(device, torch.bfloat16):
        values = results(op, arguments, 'triton', torch.bfloat16, FIXED)
        twin = results(op, arguments, 'torch', torch.bfloat16, FIXED)
    for name, value in values.items():
        assert value.dtype == twin[name].dtype, name
        bound = 1e-2 if name in ('output', *MAPS) else 1e-5
        assert relative_error(value, exact[name]) < bound, name
        assert relative_error(twin[name], exact[name]) < 5e-2, name


def test_dropped_entries_give_nothing(device):
    arguments = block_arguments(device=device)
    arguments['scale'].zero_()
    values = results(op, arguments, 'triton', FLOAT, FIXED)
    assert torch.equal(values['output'], arguments['residual'])
    for name in ('a', 'b', *GATES):
        assert values[name].count_nonzero() == 0, name


def test_two_runs_are_the_same(device):
    arguments = block_arguments((2, 9, 9, 48), 6, torch.bfloat16, device)
    runs = [
        results(op, arguments, 'triton', torch.bfloat16, FIXED)
        for _ in range(2)
    ]
    assert_same(*runs)


def test_every_value_is_written(device, monkeypatch):
    arguments = block_arguments((2, 5, 7, 131), 7, FLOAT, device)
    expected = results(op, arguments, 'triton', FLOAT, FIXED)
    for name in ('empty', 'empty_like'):
        make = getattr(torch, name)

        def filled(*sizes, make=make, **options):
            return make(*sizes, **options).fill_(torch.nan)

        monkeypatch.setattr(torch, name, filled)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        'new_empty',
        lambda *a, **options: new_empty(*a, **options).fill_(torch.nan),
    )
    values = results(op, arguments, 'triton', FLOAT, FIXED)
    assert_same(values, expected)
