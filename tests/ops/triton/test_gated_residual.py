from functools import partial

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

pytest.importorskip('triton')

from evmamba_mm.ops.triton import common, fusion_gates
from evmamba_mm.ops.triton import gated_residual as family
from evmamba_mm.ops.triton.gated_residual import (
    gated_residual,
    gates_fit,
    residual_add,
)

EPS = 1e-3
FIXED = ('scale',)
MAPS = ('residual', 'a', 'b')
GATES = (
    'norm_weight',
    'norm_bias',
    'reduce_weight',
    'reduce_bias',
    'expand_weight',
    'expand_bias',
)
FLOAT = torch.float32
kernel = partial(gated_residual, eps=EPS)

# Maps and hidden channels.
CASES = {
    'odd-map': ((2, 7, 9, 48), 6),
    'one-cell': ((3, 1, 1, 96), 12),
    'one-row': ((2, 1, 7, 20), 2),
    'narrow': ((1, 13, 5, 24), 3),
    'one-channel': ((2, 9, 7, 1), 1),
    'prime-channels': ((2, 3, 4, 131), 7),
    'most-weights': ((1, 2, 3, 260), 9),
    'no-image': ((0, 2, 2, 48), 6),
}


def reference(
    residual,
    a,
    b,
    norm_weight,
    norm_bias,
    reduce_weight,
    reduce_bias,
    expand_weight,
    expand_bias,
    scale=None,
    eps=EPS,
):
    dtype = torch.promote_types(residual.dtype, a.dtype)
    wide = torch.promote_types(dtype, FLOAT)
    y = residual.to(wide)
    for x in (a, b):
        x = x.to(wide)
        pooled = F.layer_norm(x, x.shape[3:], eps=eps).mean((1, 2))
        pooled = pooled * norm_weight.to(wide) + norm_bias.to(wide)
        linear = reduce_weight.to(wide), reduce_bias.to(wide)
        hidden = F.gelu(F.linear(pooled, *linear))
        linear = expand_weight.to(wide), expand_bias.to(wide)
        update = x * F.linear(hidden, *linear).sigmoid()[:, None, None]
        if scale is not None:
            update = update * scale.to(wide)[:, None, None, None]
        y = y + update
    return y.to(dtype)


def make_arguments(
    shape=(2, 5, 7, 24),
    hidden=3,
    dtype=FLOAT,
    device='cpu',
    parameters=FLOAT,
    scaled=True,
):
    make = partial(normal, dtype=parameters, device=device)
    batch, _, _, channels = shape
    maps = {
        name: normal(*shape, dtype=dtype, device=device, seed=i + 9) + i
        for i, name in enumerate(MAPS)
    }
    scale = normal(batch, dtype=dtype, device=device, seed=7)
    return maps | dict(
        norm_weight=make(channels, seed=1),
        norm_bias=make(channels, seed=2),
        reduce_weight=make(hidden, channels, seed=3) / channels**0.5,
        reduce_bias=make(hidden, seed=4),
        expand_weight=make(channels, hidden, seed=5) / hidden**0.5,
        expand_bias=make(channels, seed=6),
        scale=scale if scaled else None,
    )


def check(arguments, **options):
    assert_close_to_reference(
        partial(kernel, **options),
        partial(reference, **options),
        arguments,
        FIXED,
    )


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape, hidden', CASES.values(), ids=CASES)
def test_kernel(shape, hidden, dtype, device):
    check(make_arguments(shape, hidden, dtype, device))


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_kernel_without_scale(dtype, device):
    check(make_arguments(dtype=dtype, device=device, scaled=False))


@pytest.mark.parametrize('many', [False, True], ids=['few', 'many'])
@pytest.mark.parametrize('channels', [100, 300])
def test_any_number_of_programs(channels, many, device, monkeypatch):
    limits = common.LIMITS._replace(
        multiprocessors=10**6 if many else 0,
        partial_sums=1056 if many else 1,
    )
    split_rows = common.split_rows.__wrapped__
    for module in (family, fusion_gates):
        monkeypatch.setattr(module, 'LIMITS', limits)
        monkeypatch.setattr(module, 'split_rows', split_rows)
    monkeypatch.setattr(common, 'LIMITS', limits)
    if not many:
        monkeypatch.setattr(family, '_FEW_PARTIAL_SUMS', 1)
    check(make_arguments((2, 13, 5, channels), 2, FLOAT, device))


def test_without_eps(device):
    check(make_arguments((1, 3, 5, 24), 3, FLOAT, device), eps=0.0)


def test_parameters_of_many_images(device, monkeypatch):
    """A program sums over more maps than a tile has rows."""
    monkeypatch.setattr(fusion_gates, '_PARAMETER_COLUMNS', 128)
    check(make_arguments((9, 1, 1, 100), 2, FLOAT, device))


VIEWS = {
    'rows': lambda x: x[:, 1:],
    'columns': lambda x: x[:, :, 1:],
    'channels': lambda x: x[..., 24:],
    'transposed': lambda x: x.transpose(1, 2),
    'channels-first': lambda x: (
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    ),
}


@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_maps_with_strides(view, device):
    whole = make_arguments((2, 4, 6, 48), 3, FLOAT, device)
    arguments = make_arguments(view(whole['a']).shape, 3, FLOAT, device)
    for strided in (MAPS, ('a',), ('b',)):
        for name in MAPS:
            x = view(whole[name])
            arguments[name] = x if name in strided else x.contiguous()
        check(arguments)


@pytest.mark.parametrize('view', VIEWS.values(), ids=VIEWS)
def test_gradient_with_strides(view, device):
    dy = view(normal(2, 4, 6, 48, device=device))
    arguments = make_arguments(dy.shape, 3, FLOAT, device)
    scale = arguments.pop('scale')
    leaves = {name: x.requires_grad_() for name, x in arguments.items()}
    y = kernel(**leaves, scale=scale)
    inputs = list(leaves.values())
    values = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    expected = torch.autograd.grad(y, inputs, dy.contiguous())
    # Compiled for another stride, it may round in another way.
    for value, other in zip(values, expected, strict=True):
        assert relative_error(value, other) < 1e-5


def test_gradient_of_one_value(device):
    arguments = make_arguments(device=device)
    scale = arguments.pop('scale')
    leaves = [x.requires_grad_() for x in arguments.values()]
    y = kernel(**dict(zip(arguments, leaves, strict=True)), scale=scale)
    dy = torch.ones(1, device=device).expand_as(y)
    values = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    expected = torch.autograd.grad(y, leaves, dy.contiguous())
    for value, other in zip(values, expected, strict=True):
        assert relative_error(value, other) < 1e-5


@pytest.mark.parametrize(
    'dtypes',
    [
        (FLOAT, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, FLOAT, FLOAT),
        (torch.float16, torch.float16, FLOAT),
        (FLOAT, FLOAT, torch.bfloat16),
    ],
    ids=['wide-residual', 'narrow-residual', 'wide-b', 'narrow-b'],
)
def test_maps_of_several_dtypes(dtypes, device):
    arguments = make_arguments(device=device)
    for name, dtype in zip(MAPS, dtypes, strict=True):
        arguments[name] = arguments[name].to(dtype)
    values = results(kernel, arguments, FIXED)
    assert values['output'].dtype == torch.promote_types(*dtypes[:2])
    wide = {name: x.double() for name, x in arguments.items()}
    exact = results(reference, wide, FIXED)
    # A gradient dy in half precision is a rounded one.
    narrow = values['output'].dtype != FLOAT
    for name, value in values.items():
        if name != 'output':
            assert value.dtype == arguments[name].dtype, name
        bound = 1e-2 if narrow or value.dtype != FLOAT else 1e-5
        assert relative_error(value, exact[name]) < bound, name


def test_parameters_of_any_dtype_and_layout(device):
    arguments = make_arguments(device=device, parameters=torch.float16)
    for name in ('reduce_weight', 'expand_weight'):
        arguments[name] = arguments[name].mT.clone().mT
    arguments['norm_bias'] = arguments['norm_bias'].float()
    arguments['scale'] = arguments['scale'][:1].expand(2)
    check(arguments)


def test_autocast_does_not_narrow_the_gates(device):
    arguments = make_arguments(dtype=torch.bfloat16, device=device)
    expected = results(kernel, arguments, FIXED)
    with torch.autocast(device, torch.bfloat16):
        values = results(kernel, arguments, FIXED)
    for name, value in values.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


def test_gelu_is_the_exact_one(device):
    hidden = torch.tensor([-3.0, -0.5, 0.5, 3.0], device=device)
    eye, zero = torch.eye(4, device=device), torch.zeros(4, device=device)
    x = normal(1, 1, 1, 4, device=device)
    parameters = zero, hidden, EPS, eye, zero, eye, zero
    y = gated_residual(
        torch.zeros_like(x), x, torch.zeros_like(x), *parameters
    )
    torch.testing.assert_close(y, x * F.gelu(hidden).sigmoid())


def test_dropped_images_give_nothing(device):
    arguments = make_arguments(device=device)
    arguments['scale'].zero_()
    values = results(kernel, arguments, FIXED)
    assert torch.equal(values['output'], arguments['residual'])
    for name in ('a', 'b', *GATES):
        assert values[name].count_nonzero() == 0, name


def test_two_runs_are_the_same(device):
    arguments = make_arguments((2, 9, 9, 48), 6, torch.bfloat16, device)
    first, second = (results(kernel, arguments, FIXED) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize('batch', [0, 2])
def test_without_gradients_nothing_is_kept(batch, device, monkeypatch):
    arguments = make_arguments((batch, 5, 7, 24), device=device)
    expected = kernel(**arguments)
    kept, forward = [], family.gates_forward

    def noting(*arguments, **options):
        made = forward(*arguments, **options)
        kept.extend(x for x in made[1:] if x is not None)
        return made

    monkeypatch.setattr(family, 'gates_forward', noting)
    with torch.no_grad():
        assert torch.equal(kernel(**arguments), expected)
    assert kept == []


@pytest.mark.parametrize(
    'wanted',
    [
        ('residual',),
        ('a',),
        ('b', 'residual'),
        ('a', 'b'),
        ('norm_weight',),
        ('expand_bias', 'reduce_weight'),
        ('residual', *GATES),
    ],
    ids='-'.join,
)
def test_gradients_of_some(wanted, device, monkeypatch):
    arguments = make_arguments(device=device)
    expected = results(kernel, arguments, FIXED)
    names = []
    for module in (family, fusion_gates):

        def noting(kernel, *arguments, launch=module.launch, **options):
            names.append(kernel.fn.__name__)
            launch(kernel, *arguments, **options)

        monkeypatch.setattr(module, 'launch', noting)
    fixed = tuple(name for name in arguments if name not in wanted)
    values = results(kernel, arguments, fixed)
    assert values.keys() == {'output', *wanted}
    for name, value in values.items():
        assert torch.equal(value, expected[name]), name
    sums = ['_product_sum_kernel', '_gates_backward_kernel']
    assert names[names.index('_gated_sum_kernel') + 1 :] == [
        *(sums if wanted != ('residual',) else []),
        *(['_parameters_kernel'] if {*wanted} & {*GATES} else []),
        *(['_maps_backward_kernel'] if {*wanted} & {'a', 'b'} else []),
    ]


def test_residual_gets_the_gradient_itself(device):
    arguments = make_arguments(device=device)
    arguments['residual'].requires_grad_()
    y = kernel(**arguments)
    dy = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, arguments['residual'], dy)
    assert gradient.data_ptr() == dy.data_ptr()


def test_little_is_kept_besides_the_maps(device):
    arguments = make_arguments((4, 5, 7, 48), 6, torch.bfloat16, device)
    leaves = {
        name: x.requires_grad_(name not in FIXED)
        for name, x in arguments.items()
    }
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y = kernel(**leaves)
    del y
    given = sum(arguments[name].nbytes for name in ('a', 'b', *GATES))
    assert sum(kept.values()) - given < 4 * 4 * 2 * 4 * 48


def test_second_derivative_is_refused(device):
    arguments = make_arguments(device=device)
    a = arguments['a'].requires_grad_()
    y = kernel(**arguments)
    with pytest.raises(RuntimeError, match='differentiate twice'):
        torch.autograd.grad(y.square().sum(), a, create_graph=True)


def test_what_fits_a_program():
    for channels in (48, 96, 192):
        assert gates_fit(channels, channels // 8)
    assert not gates_fit(384, 48)
    assert gates_fit(1, 512) and not gates_fit(1, 513)


@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('x', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('residual', DTYPES.values(), ids=DTYPES)
def test_residual_add(residual, x, scaled, device):
    arguments = dict(
        residual=normal(2, 3, 5, 8, dtype=residual, device=device),
        x=normal(2, 3, 5, 8, dtype=x, device=device, seed=1),
        scale=normal(2, dtype=x, device=device) if scaled else None,
    )

    def plain(residual, x, scale):
        dtype = torch.promote_types(residual.dtype, x.dtype)
        if scale is not None:
            x = x.to(dtype) * scale.to(dtype)[:, None, None, None]
        return residual.to(dtype) + x

    assert_close_to_reference(residual_add, plain, arguments, FIXED)
    y = residual_add(**arguments)
    assert y.dtype == torch.promote_types(residual, x)


def test_residual_add_gives_scale_no_gradient(device):
    x = normal(2, 3, 5, 8, device=device)
    scale = normal(2, device=device).requires_grad_()
    assert not residual_add(x, x, scale).requires_grad
