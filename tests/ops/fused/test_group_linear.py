from functools import partial

import pytest
import torch

from evmamba_mm.ops import atrous_parameter_sets
from evmamba_mm.ops.fused.group_linear import (
    _linear,
    _linear_backward,
    group_linear,
    group_linear_backward,
)

from ..scan_cases import relative_error
from .kernel_cases import (
    DTYPES,
    assert_kernel_is_right,
    assert_same,
    normal,
    results,
)

# Map, outputs and step size.
CASES = {
    'one-group': ((2, 3, 5, 32), 7, 1),
    'even': ((2, 4, 6, 33), 35, 2),
    'odd-map': ((1, 5, 7, 130), 20, 2),
    'many-outputs': ((1, 3, 4, 70), 88, 2),
    'shared-sets': ((1, 7, 5, 20), 5, 3),
    'larger-step-than-map': ((1, 2, 3, 8), 5, 4),
    'one-channel': ((1, 2, 2, 1), 1, 2),
    'no-image': ((0, 3, 4, 16), 5, 2),
}


def linear_arguments(
    shape, outputs, step_size, dtype=torch.float64, device='cpu'
):
    sets = min(4, step_size**2)
    weight = normal(sets, outputs, shape[-1], seed=1, device=device)
    wide = dtype == torch.float64
    return {
        'u': normal(*shape, dtype=dtype, device=device),
        'weight': weight if wide else weight.float(),
    }


def by_cell(u, weight, step_size):
    """The definition, one pixel at a time."""
    sets = atrous_parameter_sets(step_size)
    y = u.new_zeros(*u.shape[:3], weight.shape[1])
    for h in range(u.shape[1]):
        for w in range(u.shape[2]):
            k = sets[h % step_size + step_size * (w % step_size)]
            y[:, h, w] = (weight[k] * u[:, h, w, None]).sum(-1)
    return y


@pytest.mark.parametrize(
    'shape, outputs, step_size', CASES.values(), ids=CASES
)
def test_twin_follows_the_definition(shape, outputs, step_size):
    arguments = linear_arguments(shape, outputs, step_size)
    torch.testing.assert_close(
        group_linear(**arguments, step_size=step_size),
        by_cell(**arguments, step_size=step_size),
    )


@pytest.mark.parametrize('step_size', [1, 2, 3])
def test_twin_passes_gradcheck(step_size):
    arguments = linear_arguments((2, 4, 3, 3), 2, step_size)
    leaves = [x.requires_grad_() for x in arguments.values()]
    op = partial(group_linear, step_size=step_size)
    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    'shape, outputs, step_size', CASES.values(), ids=CASES
)
def test_kernel(shape, outputs, step_size, dtype, device):
    arguments = linear_arguments(shape, outputs, step_size, dtype, device)
    op = partial(group_linear, step_size=step_size)
    assert_kernel_is_right(op, arguments, dtype)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize('with_init', [True, False], ids=['init', 'no-init'])
@pytest.mark.parametrize('step_size', [1, 2, 3])
def test_backward_function(step_size, with_init, backend, device):
    shape, outputs = (2, 5, 3, 40), 6
    arguments = linear_arguments(
        shape, outputs, step_size, torch.float32, device
    )
    leaves = [x.double().requires_grad_() for x in arguments.values()]
    dproj = normal(*shape[:3], outputs, device=device, seed=2)
    y = group_linear(*leaves, step_size)
    wanted, dweight_wanted = torch.autograd.grad(y, leaves, dproj)
    init = None
    if with_init:
        init = normal(*shape, device=device, seed=3)
        wanted = wanted + init
        init = init.float()
    du, dweight = group_linear_backward(
        dproj.float(), *arguments.values(), step_size, init, backend
    )
    assert relative_error(du, wanted) < 1e-5
    assert relative_error(dweight, dweight_wanted) < 1e-5


def test_programs_of_many_windows(device, monkeypatch):
    from evmamba_mm.ops.fused import group_linear_triton

    monkeypatch.setattr(group_linear_triton, '_PROGRAMS', 5)
    arguments = linear_arguments((3, 13, 19, 18), 9, 2, torch.float32, device)
    op = partial(group_linear, step_size=2)
    assert_kernel_is_right(op, arguments, torch.float32)


def test_half_of_a_wider_map_is_read_in_place(device):
    both = normal(2, 3, 5, 64, dtype=torch.float32, device=device)
    op = partial(group_linear, step_size=2)
    for half in both.chunk(2, dim=-1):
        arguments = linear_arguments(half.shape, 5, 2, half.dtype, device)
        arguments['u'] = half
        assert_kernel_is_right(op, arguments, torch.float32)


def test_channels_first_memory(device):
    u = normal(2, 20, 3, 5, dtype=torch.float32, device=device)
    u = u.permute(0, 2, 3, 1)
    arguments = linear_arguments(u.shape, 5, 2, u.dtype, device) | {'u': u}
    op = partial(group_linear, step_size=2)
    assert_kernel_is_right(op, arguments, torch.float32)


def test_gradient_that_is_not_dense(device):
    arguments = linear_arguments((2, 3, 4, 16), 6, 2, torch.float32, device)
    leaves = [x.requires_grad_() for x in arguments.values()]

    def gradients(backend):
        y = group_linear(*leaves, 2, backend)
        return torch.autograd.grad(y.sum() + y[..., ::2].sum(), leaves)

    pairs = zip(gradients('triton'), gradients('torch'), strict=True)
    for kernel, twin in pairs:
        assert relative_error(kernel, twin) < 1e-5


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_dtype_is_kept_under_autocast(backend, device):
    arguments = linear_arguments((2, 3, 4, 16), 6, 2, torch.float32, device)
    expected = group_linear(**arguments, step_size=2, backend='torch')
    with torch.autocast(device, torch.bfloat16):
        y = group_linear(**arguments, step_size=2, backend=backend)
    assert y.dtype == torch.float32
    assert relative_error(y, expected) < 1e-5


@pytest.fixture
def allowed_tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures('allowed_tf32')
def test_allowed_tf32_keeps_three_digits(device):
    arguments = linear_arguments((2, 5, 6, 64), 35, 2, torch.float32, device)
    op = partial(group_linear, step_size=2)
    wide = {name: x.double() for name, x in arguments.items()}
    exact = results(op, wide, 'torch', torch.float64)
    for name, x in results(op, arguments, 'triton', torch.float32).items():
        assert relative_error(x, exact[name]) < 2e-3, name


def test_more_outputs_than_the_kernel_takes(device):
    arguments = linear_arguments((1, 2, 2, 4), 257, 2, torch.float32, device)
    assert group_linear(**arguments, step_size=2).shape == (1, 2, 2, 257)
    with pytest.raises(ValueError, match='at most 256 outputs'):
        group_linear(**arguments, step_size=2, backend='triton')


def test_two_runs_are_the_same(device):
    arguments = linear_arguments((2, 9, 7, 24), 9, 2, torch.float32, device)
    op = partial(group_linear, step_size=2)
    runs = [results(op, arguments, 'triton', torch.float32) for _ in range(2)]
    assert_same(*runs)


@pytest.mark.parametrize('step_size', [1, 2])
def test_opcheck(step_size, device):
    arguments = linear_arguments(
        (1, 3, 2, 5), 6, step_size, torch.float32, device
    )
    u, weight = (x.requires_grad_() for x in arguments.values())
    torch.library.opcheck(_linear, (u, weight, step_size))
    u, weight = u.detach(), weight.detach()
    dproj = torch.ones(1, 3, 2, 6, device=device)
    init = None if step_size == 1 else torch.ones_like(u)
    torch.library.opcheck(
        _linear_backward, (dproj, u, weight, step_size, init)
    )


def test_compiles_into_one_graph(device):
    arguments = linear_arguments((2, 3, 4, 16), 6, 2, torch.float32, device)
    op = partial(group_linear, step_size=2)
    compiled = torch.compile(op, fullgraph=True, backend='aot_eager')
    assert_same(
        results(compiled, arguments, 'triton', torch.float32),
        results(op, arguments, 'triton', torch.float32),
    )


@pytest.mark.parametrize(
    'name, value',
    [
        ('u', torch.zeros(3, 4, 5)),
        ('weight', torch.zeros(4, 6, 4)),
        ('weight', torch.zeros(1, 6, 5)),
        ('step_size', 0),
    ],
    ids=['no-map', 'channels', 'sets', 'step'],
)
def test_illegal_argument_is_named(name, value):
    arguments = linear_arguments((2, 3, 4, 5), 6, 2) | {'step_size': 2}
    with pytest.raises(ValueError, match=f'^{name} must'):
        group_linear(**arguments | {name: value})


@pytest.mark.parametrize('name', ['dproj', 'du_init'])
def test_illegal_gradient_is_named(name):
    u, weight = linear_arguments((2, 3, 4, 5), 6, 2).values()
    gradients = {'dproj': torch.zeros(2, 3, 4, 6), 'du_init': u}
    gradients[name] = gradients[name][:1]
    with pytest.raises(ValueError, match=f'^{name} must'):
        group_linear_backward(u=u, weight=weight, step_size=2, **gradients)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu():
    arguments = linear_arguments((2, 3, 4, 16), 6, 2, torch.float32, 'cuda:1')
    op = partial(group_linear, step_size=2)
    assert_kernel_is_right(op, arguments, torch.float32)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
def test_more_elements_than_an_int32_counts():
    images = 2**31 // (64 * 64 * 64) + 1
    u = torch.zeros(images, 64, 64, 64, dtype=torch.bfloat16, device='cuda')
    u[-1] = normal(64, 64, 64).to(u)
    weight = normal(4, 6, 64).float().cuda()
    last = u[-1:].clone().requires_grad_()
    expected = group_linear(last, weight, 2, 'torch')
    dy = torch.zeros(images, 64, 64, 6, dtype=u.dtype, device='cuda')
    dy[-1] = normal(64, 64, 6, seed=1).to(dy)
    (wanted,) = torch.autograd.grad(expected, last, dy[-1:])
    y = group_linear(u.requires_grad_(), weight, 2, 'triton')
    assert relative_error(y[-1:], expected) < 1e-2
    (du,) = torch.autograd.grad(y, u, dy)
    assert relative_error(du[-1:], wanted) < 1e-2
