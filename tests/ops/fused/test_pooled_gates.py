import math
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import layer_norm, pooled_gates

from ..scan_cases import relative_error
from .kernel_cases import DTYPES, assert_same, normal, results

# Map and hidden channels.
CASES = {
    'odd-map': ((2, 5, 7, 48), 6),
    'one-cell': ((3, 1, 1, 96), 12),
    'few-channels': ((2, 3, 3, 3), 1),
    'prime-channels': ((2, 3, 4, 131), 7),
    'most-weights': ((1, 2, 3, 200), 25),
    'long': ((1, 31, 17, 24), 3),
    'too-many-weights': ((1, 2, 3, 384), 48),
    'no-entry': ((0, 2, 2, 48), 6),
}
EPS = 1e-3


def gates(backend='auto', **arguments):
    """All gates in one tensor, for maps as separate arguments."""
    maps = [arguments.pop(name) for name in sorted(arguments) if 'map' in name]
    return torch.stack(
        pooled_gates(maps, **arguments, eps=EPS, backend=backend)
    )


def gate_arguments(
    shape, hidden, maps=2, dtype=torch.float64, device='cpu', parameters=None
):
    parameters = parameters or torch.promote_types(dtype, torch.float32)
    make = partial(normal, dtype=parameters, device=device)
    channels = shape[-1]
    arguments = {
        f'map_{i}': normal(*shape, dtype=dtype, device=device, seed=i + 9) + i
        for i in range(maps)
    }
    return arguments | dict(
        norm_weight=make(channels, seed=1),
        norm_bias=make(channels, seed=2),
        reduce_weight=make(hidden, channels, seed=3) / channels**0.5,
        reduce_bias=make(hidden, seed=4),
        expand_weight=make(channels, hidden, seed=5) / hidden**0.5,
        expand_bias=make(channels, seed=6),
    )


def wide(arguments):
    return {name: x.double() for name, x in arguments.items()}


def test_twin_follows_the_definition():
    arguments = gate_arguments((2, 2, 3, 5), 4, maps=1)
    x, scale, shift, reduce, reduce_bias, expand, bias = arguments.values()
    y = gates(**arguments)[0]
    normed = layer_norm(x, scale, shift, EPS)
    for n in range(2):
        hidden = reduce_bias.clone()
        for e, h, w, c in product(range(4), range(2), range(3), range(5)):
            hidden[e] += reduce[e, c] * normed[n, h, w, c] / 6
        for c in range(5):
            expected = bias[c].clone()
            for e in range(4):
                open_ = (1 + math.erf(hidden[e] / math.sqrt(2))) / 2
                expected += expand[c, e] * hidden[e] * open_
            torch.testing.assert_close(y[n, c], expected)


def test_twin_passes_gradcheck():
    leaves = gate_arguments((2, 2, 1, 3), 2)
    names = list(leaves)

    def op(*values):
        return gates(**dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(
        op, [x.requires_grad_() for x in leaves.values()]
    )


@pytest.mark.parametrize('maps', [1, 2, 3])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape, hidden', CASES.values(), ids=CASES)
@torch.no_grad()
def test_kernel(shape, hidden, dtype, maps, device):
    arguments = gate_arguments(shape, hidden, maps, dtype, device)
    value = gates(**arguments, backend='triton')
    expected = gates(**wide(arguments), backend='torch')
    assert value.dtype == torch.float32
    assert value.shape == (maps, shape[0], shape[3])
    assert relative_error(value, expected) < 1e-5


def launched(monkeypatch):
    """Whether the gates' kernel runs, a list that grows."""
    from evmamba_mm.ops.fused import pooled_gates_triton as module

    calls, forward = [], module.forward
    monkeypatch.setattr(
        module, 'forward', lambda *a: calls.append(1) or forward(*a)
    )
    return calls


def test_kernel_runs_without_gradients_only(device, monkeypatch):
    calls = launched(monkeypatch)
    arguments = gate_arguments((2, 3, 4, 48), 6, 2, torch.float32, device)
    with torch.no_grad():
        expected = gates(**arguments, backend='triton')
        assert calls == [1]
    made = results(gates, arguments, 'triton', torch.float32)
    assert calls == [1]
    torch.testing.assert_close(made['output'], expected)
    exact = results(gates, wide(arguments), 'torch', torch.float64)
    for name, value in made.items():
        assert relative_error(value, exact[name]) < 1e-5, name


@torch.no_grad()
def test_too_many_weights_for_a_program_are_left_to_torch(device, monkeypatch):
    calls = launched(monkeypatch)
    shape, hidden = CASES['too-many-weights']
    arguments = gate_arguments(shape, hidden, 2, torch.float32, device)
    gates(**arguments, backend='triton')
    assert calls == []


@torch.no_grad()
def test_compiles_into_one_graph(device):
    arguments = gate_arguments((2, 3, 5, 48), 6, 2, torch.float32, device)
    compiled = torch.compile(gates, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(
        compiled(**arguments, backend='triton'),
        gates(**arguments, backend='triton'),
    )


@torch.no_grad()
def test_maps_with_strides(device):
    arguments = gate_arguments((2, 4, 6, 96), 6, 2, torch.float32, device)
    first, second = arguments['map_0'], arguments['map_1']
    for view in (
        lambda x: x[:, 1:],
        lambda x: x[..., :48],
        lambda x: x.transpose(1, 2),
        lambda x: x.mT,
    ):
        shape = view(first).shape
        parameters = gate_arguments(
            shape, 6, 2, torch.float32, device, torch.float32
        )
        for pair in (
            (view(first), view(second)),
            (view(first), view(second).contiguous()),
            (view(first).contiguous(), view(second)),
        ):
            parameters |= dict(zip(('map_0', 'map_1'), pair, strict=True))
            value = gates(**parameters, backend='triton')
            assert relative_error(value, gates(**wide(parameters))) < 1e-5


@torch.no_grad()
def test_maps_of_two_dtypes_and_parameters_of_any(device):
    arguments = gate_arguments(
        (2, 3, 5, 48), 6, 2, torch.float32, device, torch.float16
    )
    arguments['map_1'] = arguments['map_1'].bfloat16()
    arguments['expand_weight'] = arguments['expand_weight'].mT.clone().mT
    value = gates(**arguments, backend='triton')
    assert relative_error(value, gates(**wide(arguments))) < 1e-5


@torch.no_grad()
def test_autocast_does_not_narrow_the_kernel(device):
    arguments = gate_arguments((2, 3, 5, 48), 6, 2, torch.bfloat16, device)
    expected = gates(**wide(arguments))
    with torch.autocast(device, torch.bfloat16):
        value = gates(**arguments, backend='triton')
        twin = gates(**arguments, backend='torch')
    assert relative_error(value, expected) < 1e-5
    assert twin.dtype == torch.bfloat16
    assert relative_error(twin, expected) < 2e-2


@torch.no_grad()
@pytest.mark.parametrize('many', [False, True], ids=['few', 'many'])
def test_any_number_of_partial_sums(many, device, monkeypatch):
    from evmamba_mm.ops.fused import tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', 10**6 if many else 0)
    tiles.split_rows.cache_clear()
    arguments = gate_arguments((2, 31, 33, 100), 6, 2, torch.float32, device)
    value = gates(**arguments, backend='triton')
    tiles.split_rows.cache_clear()
    assert relative_error(value, gates(**wide(arguments))) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('maps', [1, 2])
def test_every_value_is_written(maps, device, monkeypatch):
    arguments = gate_arguments((2, 5, 7, 131), 7, maps, torch.float32, device)
    expected = gates(**arguments, backend='triton')
    empty = torch.empty

    def filled(*sizes, **options):
        return empty(*sizes, **options).fill_(torch.nan)

    monkeypatch.setattr(torch, 'empty', filled)
    value = gates(**arguments, backend='triton')
    assert_same({'output': value}, {'output': expected})


@torch.no_grad()
def test_gelu_is_the_exact_one(device):
    arguments = gate_arguments((1, 1, 1, 4), 4, 1, torch.float32, device)
    hidden = torch.tensor([-3.0, -0.5, 0.5, 3.0], device=device)
    eye = torch.eye(4, device=device)
    arguments |= dict(norm_bias=hidden, reduce_weight=eye, expand_weight=eye)
    for name in ('norm_weight', 'reduce_bias', 'expand_bias'):
        arguments[name].zero_()
    value = gates(**arguments, backend='triton')[0, 0]
    torch.testing.assert_close(value, F.gelu(hidden))


@pytest.mark.parametrize(
    'name', ['reduce_weight', 'reduce_bias', 'expand_weight', 'expand_bias']
)
def test_wrong_shape_is_named(name):
    arguments = gate_arguments((2, 3, 5, 48), 6)
    arguments[name] = arguments[name][..., :5]
    with pytest.raises(ValueError, match=f'{name} must have shape .*5'):
        gates(**arguments)


def test_wrong_maps_are_refused():
    arguments = gate_arguments((2, 3, 5, 48), 6)
    with pytest.raises(ValueError, match='one shape, got'):
        gates(**arguments | {'map_1': arguments['map_1'][:, 1:]})
    with pytest.raises(ValueError, match='norm_weight|weight must have shape'):
        gates(**arguments | {'norm_weight': arguments['norm_weight'][1:]})
