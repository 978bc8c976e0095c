import pytest
import torch

from .cases import DTYPES, normal, relative_error

pytest.importorskip('triton', reason='triton is not installed')

from evmamba_mm.ops import atrous_parameter_sets
from evmamba_mm.ops.triton import group_linear
from evmamba_mm.ops.triton.group_linear import (
    proj_columns,
    project_backward,
    project_forward,
)

# Map, states, rank and step.
CASES = {
    'one-group': ((2, 3, 5, 32), 2, 3, 1),
    'even': ((2, 4, 6, 33), 16, 3, 2),
    'odd-map': ((1, 5, 7, 130), 8, 4, 2),
    'one-pixel': ((1, 1, 1, 16), 4, 2, 2),
    'one-row': ((2, 1, 7, 24), 4, 5, 2),
    'many-outputs': ((1, 3, 4, 70), 32, 24, 2),
    'most-outputs': ((1, 2, 3, 20), 120, 16, 2),
    'no-padding': ((1, 7, 9, 24), 3, 2, 2),
    'shared-sets': ((1, 7, 5, 20), 2, 1, 3),
    'larger-step-than-map': ((1, 2, 3, 8), 1, 3, 4),
    'one-channel': ((1, 2, 2, 1), 1, 1, 2),
    'no-image': ((0, 3, 4, 16), 2, 1, 2),
}
# The interpreter cuts a bfloat16 off where a GPU rounds it.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def reference(u, weight, rank, step):
    """One pixel at a time, without the padding."""
    sets = atrous_parameter_sets(step)
    weight = weight.roll(-rank, dims=1)
    y = u.new_zeros(*u.shape[:3], weight.shape[1])
    for h in range(u.shape[1]):
        for w in range(u.shape[2]):
            k = sets[h % step + step * (w % step)]
            y[:, h, w] = u[:, h, w] @ weight[k].T
    return y


def check(u, weight, rank, step, dtype=None, layout=None, du_init=None):
    """Forward and backward against fp64, with NaN as padding of dproj."""
    rows = weight.shape[1]
    bound = BOUNDS[u.dtype]
    y = project_forward(u, weight, rank, step)
    assert y.dtype == u.dtype
    assert y.shape == (*u.shape[:3], proj_columns(0, rows))
    assert y[..., rows:].eq(0).all()
    leaves = [x.detach().double().requires_grad_() for x in (u, weight)]
    exact = reference(*leaves, rank, step)
    assert relative_error(y[..., :rows], exact.detach()) < bound
    dproj = torch.full_like(y, torch.nan, dtype=dtype)
    dproj[..., :rows] = normal(*exact.shape, seed=2).to(dproj)
    dy = dproj[..., :rows].double()
    du_exact, dweight_exact = torch.autograd.grad(exact, leaves, dy)
    if layout is not None:
        dproj = layout(dproj)
    du, dweight = project_backward(dproj, u, weight, rank, step, du_init)
    if du_init is not None:
        du_exact = du_exact + du_init
    assert du.dtype == u.dtype and du.shape == u.shape
    assert dweight.dtype == weight.dtype and dweight.shape == weight.shape
    assert relative_error(du, du_exact) < bound
    assert relative_error(dweight, dweight_exact) < bound


def tensors(shape, states, rank, step, dtype, device, wide=True):
    sets, rows = min(4, step * step), rank + 2 * states
    weight = normal(sets, rows, shape[-1], seed=1, device=device)
    if not wide:
        weight = weight.to(dtype)
    return normal(*shape, dtype=dtype, device=device), weight


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    'shape, states, rank, step', CASES.values(), ids=CASES
)
def test_projection(shape, states, rank, step, dtype, device):
    u, weight = tensors(shape, states, rank, step, dtype, device)
    check(u, weight, rank, step)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_weight_in_the_dtype_of_the_map(dtype, device):
    u, weight = tensors((1, 5, 4, 24), 4, 3, 2, dtype, device, wide=False)
    check(u, weight, 3, 2)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('step', [1, 2, 3])
def test_gradient_is_added(step, dtype, device):
    shape = (2, 5, 3, 40)
    u, weight = tensors(shape, 3, 2, step, dtype, device)
    du_init = normal(*shape, dtype=dtype, device=device, seed=3)
    check(u, weight, 2, step, du_init=du_init)


def test_gradient_in_fp32_of_a_half_precision_map(device):
    u, weight = tensors((2, 5, 3, 40), 3, 2, 2, torch.float16, device)
    check(u, weight, 2, 2, dtype=torch.float32)


def channels_first(x):
    return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def slice_of_channels(x):
    return torch.cat([x, x], dim=-1)[..., x.shape[-1] :]


@pytest.mark.parametrize('layout', [channels_first, slice_of_channels])
@pytest.mark.parametrize('step', [1, 2])
def test_layouts(layout, step, device):
    u, weight = tensors((2, 3, 5, 32), 3, 2, step, torch.float32, device)
    du_init = layout(normal(*u.shape, device=device, seed=3))
    check(layout(u), weight, 2, step, layout=layout, du_init=du_init)
    transposed = weight.mT.contiguous().mT
    check(u, transposed, 2, step, layout=layout)


def test_slice_is_read_in_place(device):
    both = normal(2, 3, 5, 64, device=device)
    _, weight = tensors((1, 1, 1, 32), 3, 2, 2, torch.float32, device)
    for half in both.chunk(2, dim=-1):
        check(half, weight, 2, 2)
    both[..., 32:] = torch.nan
    assert project_forward(both[..., :32], weight, 2, 2).isfinite().all()


@pytest.mark.parametrize('programs', [1, 5, 10**6])
def test_any_number_of_programs(programs, device, monkeypatch):
    monkeypatch.setattr(group_linear, '_PROGRAMS', programs)
    for step in (1, 2, 3):
        u, weight = tensors((3, 13, 5, 18), 3, 2, step, torch.float32, device)
        check(u, weight, 2, step)


@pytest.fixture
def allowed_tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures('allowed_tf32')
def test_allowed_tf32_keeps_three_digits(device, monkeypatch):
    monkeypatch.setitem(BOUNDS, torch.float32, 2e-3)
    check(*tensors((2, 5, 6, 64), 16, 3, 2, torch.float32, device), 3, 2)


def test_more_outputs_than_are_served(device):
    u, weight = tensors((1, 2, 2, 4), 120, 17, 2, torch.float32, device)
    dproj = torch.zeros(1, 2, 2, 264, device=device)
    for call in (
        lambda: project_forward(u, weight, 17, 2),
        lambda: project_backward(dproj, u, weight, 17, 2),
    ):
        with pytest.raises(ValueError, match='at most 256 outputs'):
            call()


def test_two_runs_are_the_same(device):
    u, weight = tensors((2, 9, 7, 24), 4, 3, 2, torch.float32, device)
    dproj = normal(2, 9, 7, 16, device=device)
    runs = [
        (
            project_forward(u, weight, 3, 2),
            *project_backward(dproj, u, weight, 3, 2),
        )
        for _ in range(2)
    ]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize('states, rank, columns', [(16, 3, 40), (4, 8, 16)])
def test_columns_are_whole_vectors(states, rank, columns):
    assert proj_columns(states, rank) == columns


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu():
    check(*tensors((2, 3, 4, 16), 2, 3, 2, torch.float32, 'cuda:1'), 3, 2)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
def test_more_elements_than_an_int32_counts():
    images = 2**31 // (64 * 64 * 64) + 1
    u = torch.zeros(images, 64, 64, 64, dtype=torch.bfloat16, device='cuda')
    last, weight = tensors((1, 64, 64, 64), 2, 3, 2, u.dtype, 'cuda')
    u[-1:] = last
    dproj = torch.zeros(images, 64, 64, 8, dtype=u.dtype, device='cuda')
    dproj[-1] = normal(64, 64, 8, seed=1).to(dproj)
    y = project_forward(u, weight, 3, 2)
    assert torch.equal(y[-1:], project_forward(last, weight, 3, 2))
    du, _ = project_backward(dproj, u, weight, 3, 2)
    wanted, _ = project_backward(dproj[-1:], last, weight, 3, 2)
    assert torch.equal(du[-1:], wanted)
