from functools import partial
from itertools import product

import pytest
import torch

from evmamba_mm.ops.fused.squeeze_excite import (
    _squeeze_excite,
    _squeeze_excite_backward,
    squeeze_excite,
    squeeze_excite_gates,
)

from ..scan_cases import relative_error
from .kernel_cases import (
    DTYPES,
    assert_kernel_is_right,
    assert_same,
    normal,
    results,
)

# Map and hidden channels.
CASES = {
    'odd-map': ((2, 5, 7, 48), 6),
    'one-cell': ((3, 1, 1, 96), 12),
    'one-channel': ((2, 3, 3, 1), 1),
    'prime-channels': ((2, 3, 4, 131), 7),
    'wide': ((1, 7, 7, 1536), 16),
    'long': ((1, 31, 17, 24), 3),
    'no-entry': ((0, 2, 2, 48), 6),
}


def attention_arguments(shape, hidden, dtype=torch.float64, device='cpu'):
    parameters = torch.promote_types(dtype, torch.float32)
    make = partial(normal, dtype=parameters, device=device)
    channels = shape[-1]
    # Gates that are neither open nor shut show every error.
    return dict(
        x=normal(*shape, dtype=dtype, device=device) + 0.5,
        reduce_weight=make(hidden, channels, seed=1) / channels**0.5,
        reduce_bias=make(hidden, seed=2),
        expand_weight=make(channels, hidden, seed=3) / hidden**0.5,
        expand_bias=make(channels, seed=4),
    )


def test_twin_follows_the_definition():
    arguments = attention_arguments((2, 2, 3, 5), 4)
    x, reduce, reduce_bias, expand, expand_bias = arguments.values()
    y = squeeze_excite(**arguments)
    for n in range(2):
        hidden = reduce_bias.clone()
        for e, h, w, c in product(range(4), range(2), range(3), range(5)):
            hidden[e] += reduce[e, c] * x[n, h, w, c] / 6
        for c in range(5):
            logit = expand_bias[c].clone()
            for e in range(4):
                logit += expand[c, e] * max(hidden[e], 0)
            expected = x[n, ..., c] / (1 + torch.exp(-logit))
            torch.testing.assert_close(y[n, ..., c], expected)


def test_twin_passes_gradcheck():
    arguments = attention_arguments((2, 2, 3, 4), 3)
    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(squeeze_excite, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape, hidden', CASES.values(), ids=CASES)
def test_kernel(shape, hidden, dtype, device):
    arguments = attention_arguments(shape, hidden, dtype, device)
    assert_kernel_is_right(squeeze_excite, arguments, dtype)


@pytest.mark.parametrize('autocast', [False, True], ids=['plain', 'autocast'])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape, hidden', CASES.values(), ids=CASES)
@torch.no_grad()
def test_gates_open_the_map_alike(shape, hidden, dtype, autocast, device):
    arguments = attention_arguments(shape, hidden, dtype, device)
    wide = {name: x.double() for name, x in arguments.items()}
    gates = squeeze_excite_gates(**wide).sigmoid()[:, None, None]
    torch.testing.assert_close(
        wide['x'] * gates, squeeze_excite(**wide), rtol=1e-12, atol=1e-12
    )
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        for backend in ('torch', 'triton'):
            y = squeeze_excite_gates(**arguments, backend=backend)
            assert y.dtype == torch.float32
            assert relative_error(y, squeeze_excite_gates(**wide)) < 1e-5


def test_gates_have_gradients(device):
    arguments = attention_arguments((2, 3, 5, 48), 6, torch.float32, device)
    assert_kernel_is_right(squeeze_excite_gates, arguments, torch.float32)


@pytest.mark.parametrize('processors', [0, 10**6], ids=['few', 'many'])
@pytest.mark.parametrize('channels', [100, 300])
def test_any_number_of_programs(channels, processors, device, monkeypatch):
    from evmamba_mm.ops.fused import tiles

    monkeypatch.setattr(tiles, '_MULTIPROCESSORS', processors)
    arguments = attention_arguments(
        (2, 9, 11, channels), 5, torch.float32, device
    )
    assert_kernel_is_right(squeeze_excite, arguments, torch.float32)


def test_every_value_is_written(device, monkeypatch):
    arguments = attention_arguments((2, 5, 7, 131), 6, torch.float32, device)
    expected = results(squeeze_excite, arguments, 'triton', torch.float32)

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
    assert_same(
        results(squeeze_excite, arguments, 'triton', torch.float32), expected
    )


def test_map_with_strides(device):
    x = normal(2, 3, 5, 96, dtype=torch.float32, device=device)
    views = (
        x[:, :, 1:],
        x[..., :48],
        x.transpose(1, 2),
        x.permute(0, 3, 1, 2),
        x[:1].expand(2, -1, -1, -1),
    )
    for view in views:
        arguments = attention_arguments(view.shape, 4, torch.float32, device)
        assert_kernel_is_right(
            squeeze_excite, arguments | {'x': view}, torch.float32
        )


@pytest.mark.parametrize('expanded', [False, True], ids=['nchw', 'expanded'])
def test_gradient_with_strides(expanded, device):
    arguments = attention_arguments((2, 3, 5, 48), 6, torch.float32, device)
    if expanded:
        dy = normal(2, 1, 1, 48).expand(2, 3, 5, 48)
    else:
        dy = normal(2, 48, 3, 5).permute(0, 2, 3, 1)

    def gradients(backend, dtype):
        leaves = [
            x.detach().to(dtype).requires_grad_() for x in arguments.values()
        ]
        y = squeeze_excite(*leaves, backend=backend)
        return torch.autograd.grad(y, leaves, dy.to(y))

    kernel = gradients('triton', torch.float32)
    exact = gradients('torch', torch.float64)
    for name, one, other in zip(arguments, kernel, exact, strict=True):
        assert relative_error(one, other) < 1e-5, name


def test_parameters_in_half_precision(device):
    arguments = attention_arguments((2, 3, 5, 48), 6, torch.float16, device)
    arguments = {name: x.half() for name, x in arguments.items()}
    assert_kernel_is_right(squeeze_excite, arguments, torch.float16)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize(
    'stored', [torch.float32, torch.bfloat16], ids=['fp32', 'bf16']
)
def test_under_autocast(stored, backend, device):
    arguments = attention_arguments((2, 3, 5, 48), 6, stored, device)
    wide = {name: x.double() for name, x in arguments.items()}
    exact = results(squeeze_excite, wide, 'torch', torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        values = results(squeeze_excite, arguments, backend, torch.bfloat16)
    assert values['output'].dtype == torch.bfloat16
    for name, value in values.items():
        # The products of the kernels' backward stay in fp32, torch's do not.
        exactly = backend == 'triton' and value.dtype == torch.float32
        bound = 1e-5 if exactly else 1e-2
        assert relative_error(value, exact[name]) < bound, name


def test_parameters_alone_get_gradients(device):
    arguments = attention_arguments((2, 3, 5, 48), 6, torch.float32, device)
    assert_kernel_is_right(
        squeeze_excite, arguments, torch.float32, fixed=('x',)
    )


def test_two_runs_are_the_same(device):
    arguments = attention_arguments((2, 9, 9, 48), 6, torch.bfloat16, device)
    runs = [
        results(squeeze_excite, arguments, 'triton', torch.bfloat16)
        for _ in range(2)
    ]
    assert_same(*runs)


def test_second_derivative_is_refused(device):
    arguments = attention_arguments((2, 3, 5, 48), 6, torch.float32, device)
    leaves = {name: x.requires_grad_() for name, x in arguments.items()}
    y = squeeze_excite(**leaves, backend='triton')
    (gradient,) = torch.autograd.grad(
        y.square().sum(), leaves['x'], create_graph=True
    )
    with pytest.raises(RuntimeError, match='differentiate twice'):
        gradient.sum().backward()


def test_opcheck(device):
    arguments = attention_arguments((2, 3, 5, 48), 6, torch.bfloat16, device)
    leaves = [x.clone().requires_grad_() for x in arguments.values()]
    torch.library.opcheck(_squeeze_excite, (*leaves, torch.bfloat16))
    x, reduce, _, expand, _ = arguments.values()
    _, *inner = _squeeze_excite(*arguments.values(), torch.bfloat16)
    torch.library.opcheck(
        _squeeze_excite_backward, (x, x, *inner, reduce, expand)
    )


def test_compiles_into_one_graph(device):
    arguments = attention_arguments((2, 3, 5, 48), 6, torch.float32, device)
    compiled = torch.compile(
        squeeze_excite, fullgraph=True, backend='aot_eager'
    )
    assert_same(
        results(compiled, arguments, 'triton', torch.float32),
        results(squeeze_excite, arguments, 'triton', torch.float32),
    )


@pytest.mark.parametrize('shape', [(3, 5, 48), (2, 0, 5, 48)])
def test_no_map_is_refused(shape):
    with pytest.raises(ValueError, match='x must be a map'):
        squeeze_excite(**attention_arguments(shape, 6))


@pytest.mark.parametrize(
    'name', ['reduce_weight', 'expand_weight', 'expand_bias']
)
def test_wrong_shape_is_named(name):
    arguments = attention_arguments((2, 3, 5, 48), 6)
    arguments[name] = arguments[name][:1]
    with pytest.raises(ValueError, match=f'{name} must have shape .*1'):
        squeeze_excite(**arguments)
