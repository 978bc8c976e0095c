from functools import partial
from itertools import product

import pytest
import torch

from evmamba_mm.ops.fused import scale_add
from evmamba_mm.ops.fused.scale_add import _scale_add, _scale_add_backward

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
    'no-cell': (2, 0, 2, 48),
}
FIXED = ('scale',)


def add_arguments(
    shape, absent=(), dtype=torch.float64, device='cpu', residual=None
):
    make = partial(normal, dtype=dtype, device=device)
    channels = (shape[0], shape[-1])
    arguments = dict(
        residual=make(*shape).to(residual or dtype),
        a=make(*shape, seed=1),
        gate_a=make(*channels, seed=2),
        b=make(*shape, seed=3),
        gate_b=make(*channels, seed=4),
        scale=make(shape[0], seed=5),
    )
    return {
        name: None if name in absent else x for name, x in arguments.items()
    }


# Every choice of the arguments that may be missing.
ABSENT = [
    tuple(name for name, keep in zip(names, kept, strict=True) if not keep)
    for names in [('gate_a', 'b', 'gate_b', 'scale')]
    for kept in product([True, False], repeat=4)
    if kept[1] or not kept[2]
]


def absent_id(absent):
    return 'no-' + '-'.join(absent) if absent else 'all'


@pytest.mark.parametrize('absent', ABSENT, ids=absent_id)
def test_twin_follows_the_definition(absent):
    arguments = add_arguments((2, 2, 3, 4), absent)
    expected = arguments['residual'].clone()
    for n, h, w, c in product(range(2), range(2), range(3), range(4)):
        update = 0
        for name in 'ab':
            x, gate = arguments[name], arguments[f'gate_{name}']
            if x is not None:
                factor = 1 if gate is None else gate[n, c].sigmoid()
                update += x[n, h, w, c] * factor
        scale = arguments['scale']
        expected[n, h, w, c] += update * (1 if scale is None else scale[n])
    torch.testing.assert_close(scale_add(**arguments), expected)


@pytest.mark.parametrize('absent', ABSENT, ids=absent_id)
def test_twin_passes_gradcheck(absent):
    *leaves, scale = add_arguments((2, 2, 1, 3), absent).values()
    leaves = [None if x is None else x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(scale_add, [*leaves, scale])


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('absent', ABSENT, ids=absent_id)
def test_kernel(absent, dtype, device):
    arguments = add_arguments((2, 3, 5, 24), absent, dtype, device)
    assert_kernel_is_right(scale_add, arguments, dtype, FIXED)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel_of_any_shape(shape, dtype, device):
    arguments = add_arguments(shape, (), dtype, device)
    assert_kernel_is_right(scale_add, arguments, dtype, FIXED)


@pytest.mark.parametrize('absent', [(), ('gate_a',)], ids=absent_id)
@pytest.mark.parametrize('channels', [100, 1030])
def test_program_of_many_steps(channels, absent, device, monkeypatch):
    from evmamba_mm.ops.fused import scale_add_triton, tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', 0)
    monkeypatch.setattr(scale_add_triton, '_MOST_PARTIAL_SUMS', 4)
    shape, dtype = (2, 5, 7, channels), torch.float32
    arguments = add_arguments(shape, absent, dtype, device)
    assert_kernel_is_right(scale_add, arguments, dtype, FIXED)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize(
    ('residual', 'dtype', 'expected'),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
    ids=['wide-stream', 'narrow-stream', 'half'],
)
def test_result_is_as_wide_as_its_parts(
    residual, dtype, expected, backend, device
):
    arguments = add_arguments((2, 3, 5, 24), (), dtype, device, residual)
    with torch.autocast(device, torch.bfloat16):
        values = results(scale_add, arguments, backend, dtype, FIXED)
    assert values['output'].dtype == expected
    for name, gradient in values.items():
        if name != 'output':
            assert gradient.dtype == arguments[name].dtype, name
    wide = {name: x.double() for name, x in arguments.items()}
    exact = results(scale_add, wide, 'torch', dtype, FIXED)
    for name, value in values.items():
        half = value.dtype == torch.bfloat16
        bound = 1e-2 if half else 1e-5
        assert relative_error(value, exact[name]) < bound, name


def test_maps_with_strides(device):
    shape, dtype = (2, 3, 5, 48), torch.float32
    arguments = add_arguments(shape, (), dtype, device)
    both = normal(2, 3, 5, 96, dtype=dtype, device=device, seed=9)
    arguments['a'], arguments['b'] = both.chunk(2, dim=-1)
    arguments['residual'] = arguments['residual'].permute(0, 3, 1, 2)
    arguments['residual'] = (
        arguments['residual'].contiguous().permute(0, 2, 3, 1)
    )
    gates = normal(2, 96, dtype=dtype, device=device, seed=8)
    arguments['gate_a'], arguments['gate_b'] = gates.chunk(2, dim=-1)
    arguments['scale'] = arguments['scale'][:1].expand(2)
    assert_kernel_is_right(scale_add, arguments, dtype, FIXED)


def test_residual_gets_the_gradient_itself(device):
    arguments = add_arguments((2, 3, 5, 24), (), torch.float32, device)
    leaves = arguments | {'residual': arguments['residual'].requires_grad_()}
    y = scale_add(**leaves, backend='triton')
    dy = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, leaves['residual'], dy)
    assert gradient.data_ptr() == dy.data_ptr()


def test_two_runs_are_the_same(device):
    arguments = add_arguments((2, 9, 9, 48), (), torch.bfloat16, device)
    runs = [
        results(scale_add, arguments, 'triton', torch.bfloat16, FIXED)
        for _ in range(2)
    ]
    assert_same(*runs)


@pytest.mark.parametrize(
    'absent',
    [(), ('gate_a',), ('b', 'gate_b', 'scale'), ('gate_a', 'b', 'gate_b')],
    ids=absent_id,
)
def test_opcheck(absent, device):
    arguments = add_arguments((2, 3, 5, 24), absent, torch.float32, device)
    *leaves, scale = arguments.values()
    leaves = [None if x is None else x.requires_grad_() for x in leaves]
    torch.library.opcheck(_scale_add, (*leaves, scale))
    fixed = [None if x is None else x.detach() for x in leaves]
    torch.library.opcheck(_scale_add_backward, (*fixed, scale))


def test_compiles_into_one_graph(device):
    arguments = add_arguments((2, 3, 5, 24), (), torch.float32, device)
    compiled = torch.compile(scale_add, fullgraph=True, backend='aot_eager')
    assert_same(
        results(compiled, arguments, 'triton', torch.float32, FIXED),
        results(scale_add, arguments, 'triton', torch.float32, FIXED),
    )


@pytest.mark.parametrize(
    'name', ['residual', 'gate_a', 'b', 'gate_b', 'scale']
)
def test_wrong_shape_is_named(name):
    arguments = add_arguments((2, 3, 5, 24))
    arguments[name] = arguments[name][:1]
    with pytest.raises(ValueError, match=f'{name} must have shape .*1'):
        scale_add(**arguments)


def test_gate_without_its_map_is_refused():
    arguments = add_arguments((2, 3, 5, 24), ('b',))
    with pytest.raises(ValueError, match='gate_b needs b'):
        scale_add(**arguments)


def test_tokens_without_a_map_are_refused():
    x = normal(2, 3, 24)
    with pytest.raises(ValueError, match='a must be a map'):
        scale_add(x, x)
