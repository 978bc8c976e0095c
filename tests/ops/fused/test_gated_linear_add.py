from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import gated_linear_add

from ..scan_cases import relative_error
from .kernel_cases import DTYPES, normal

# Map and outputs.
CASES = {
    'odd-map': ((3, 5, 7, 40), 35),
    'one-cell': ((5, 1, 1, 48), 12),
    'one-channel': ((2, 3, 3, 1), 1),
    'two-images-a-tile': ((3, 7, 7, 72), 24),
    'long': ((1, 13, 17, 20), 48),
    'many-outputs': ((2, 3, 4, 33), 200),
    'no-image': ((0, 2, 2, 16), 8),
    'no-cell': ((2, 0, 2, 16), 8),
    'no-channel': ((2, 2, 2, 0), 8),
}


@pytest.fixture(autouse=True)
def tf32_allowed():
    """Else torch multiplies in fp32, not the kernel."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def add_arguments(
    shape, outputs, dtype=torch.float64, device='cpu', with_bias=True
):
    make = partial(normal, dtype=dtype, device=device)
    channels = shape[-1]
    logits = make(shape[0], channels, seed=2)
    return dict(
        residual=make(*shape[:3], outputs),
        x=make(*shape, seed=1),
        logits=logits if dtype == torch.float64 else logits.float(),
        weight=make(outputs, channels, seed=3) / max(channels, 1) ** 0.5,
        bias=make(outputs, seed=4) if with_bias else None,
    )


def definition(residual, x, logits, weight, bias=None):
    gated = x * logits.sigmoid()[:, None, None]
    return residual + F.linear(gated, weight, bias)


def assert_kernel_is_right(arguments, backend='triton', tolerance=None):
    exact = definition(
        **{
            name: None if x is None else x.double()
            for name, x in arguments.items()
        }
    )
    with torch.no_grad():
        y = gated_linear_add(**arguments, backend=backend)
    if tolerance is None:
        # Rounded: the gated map, and the result. TF32 is as coarse as fp16.
        tolerance = {
            torch.float32: 1e-3 if y.is_cuda else 1e-5,
            torch.float16: 1e-3,
            torch.bfloat16: 8e-3,
        }[y.dtype]
    assert relative_error(y, exact) < tolerance
    return y


def test_twin_follows_the_definition():
    arguments = add_arguments((2, 3, 4, 5), 6)
    torch.testing.assert_close(
        gated_linear_add(**arguments), definition(**arguments)
    )


@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no-bias'])
def test_twin_passes_gradcheck(with_bias):
    arguments = add_arguments((2, 2, 1, 3), 4, with_bias=with_bias)
    leaves = [
        None if x is None else x.requires_grad_() for x in arguments.values()
    ]
    assert torch.autograd.gradcheck(gated_linear_add, leaves)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape, outputs', CASES.values(), ids=CASES)
def test_kernel(shape, outputs, dtype, device):
    arguments = add_arguments(shape, outputs, dtype, device)
    y = assert_kernel_is_right(arguments)
    assert y.dtype == dtype


@pytest.mark.parametrize('outputs', [8, 48, 96, 192, 200, 384])
@pytest.mark.parametrize('enough', [1, 10**6], ids=['few', 'many'])
def test_any_tile(enough, outputs, device, monkeypatch):
    from evmamba_mm.ops.fused import gated_linear_add_triton as kernel

    monkeypatch.setattr(kernel, '_ENOUGH_PROGRAMS', enough)
    monkeypatch.setattr(kernel, '_plan', kernel._plan.__wrapped__)
    arguments = add_arguments((2, 9, 8, 20), outputs, torch.float32, device)
    assert_kernel_is_right(arguments)


@pytest.mark.parametrize('tokens', [1, 31, 33, 64, 65, 128, 129, 1000])
@pytest.mark.parametrize('batch', [1, 5, 128])
def test_tiles_are_as_many_as_the_map_needs(tokens, batch):
    kernel = pytest.importorskip(
        'evmamba_mm.ops.fused.gated_linear_add_triton'
    )
    for outputs in (1, 64, 100, 192, 768):
        plan = kernel._plan(batch, tokens, outputs)
        images = plan.rows // plan.span
        tiles = -(-batch // images) * -(-tokens // plan.span)
        width = plan.columns + plan.more
        assert images == 1 or tokens <= plan.span
        assert plan.programs == tiles * -(-outputs // width)


def test_full_precision_is_kept(device):
    torch.backends.cuda.matmul.allow_tf32 = False
    arguments = add_arguments((2, 5, 7, 40), 24, torch.float32, device)
    assert_kernel_is_right(arguments, tolerance=1e-5)


def test_without_bias(device):
    arguments = add_arguments(
        (2, 5, 6, 40), 24, torch.float16, device, with_bias=False
    )
    assert_kernel_is_right(arguments)


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16], ids=['fp32', 'fp16']
)
@pytest.mark.parametrize('allowed', [True, False], ids=['tf32', 'full'])
def test_gates_in_half_precision(allowed, dtype, device):
    torch.backends.cuda.matmul.allow_tf32 = allowed
    arguments = add_arguments((5, 2, 3, 24), 16, dtype, device)
    arguments['logits'] = arguments['logits'].half()
    assert_kernel_is_right(arguments)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
@pytest.mark.parametrize(
    'residual', [torch.float32, torch.bfloat16], ids=['wide', 'half']
)
@pytest.mark.parametrize(
    'x', [torch.float32, torch.bfloat16], ids=['wide-map', 'half-map']
)
def test_under_autocast(x, residual, backend, device):
    arguments = add_arguments((2, 3, 5, 24), 16, torch.float32, device)
    arguments['x'] = arguments['x'].to(x)
    arguments['residual'] = arguments['residual'].to(residual)
    with torch.autocast(device, torch.bfloat16):
        y = assert_kernel_is_right(arguments, backend, tolerance=1e-2)
    assert y.dtype == residual


def test_a_wide_residual_is_not_rounded(device):
    arguments = add_arguments((2, 3, 5, 24), 16, torch.float16, device)
    arguments['residual'] = arguments['residual'].float() * 1.0001
    y = assert_kernel_is_right(arguments, tolerance=1e-3)
    assert y.dtype == torch.float32
    zero = {name: x * 0 for name, x in arguments.items()}
    zero['residual'] = arguments['residual']
    with torch.no_grad():
        y = gated_linear_add(**zero, backend='triton')
    assert torch.equal(y, arguments['residual'])


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16], ids=['fp32', 'fp16']
)
def test_every_value_is_written_and_nothing_else_read(
    dtype, device, monkeypatch
):
    """Between and behind the images lies nothing but NaN."""
    arguments = add_arguments((3, 5, 7, 36), 20, dtype, device)
    for name, x in arguments.items():
        memory = torch.full((2, x.numel() + 9999), torch.nan).to(x)
        inside = memory[1, : x.numel()].view(x.shape)
        arguments[name] = inside.copy_(x)
    empty = torch.empty

    def filled(*shape, **options):
        return empty(*shape, **options).fill_(torch.nan)

    monkeypatch.setattr(torch, 'empty', filled)
    assert_kernel_is_right(arguments)


def test_maps_with_strides(device):
    arguments = add_arguments((2, 3, 5, 48), 24, torch.float32, device)
    both = normal(2, 3, 5, 96, dtype=torch.float32, device=device)
    gates = normal(2, 96, dtype=torch.float32, device=device)
    residual = arguments['residual'].transpose(1, 2).contiguous()
    arguments |= dict(
        x=both[..., 48:],
        logits=gates[:, ::2],
        residual=residual.transpose(1, 2),
        weight=arguments['weight'].t().contiguous().t(),
    )
    assert_kernel_is_right(arguments)


def test_one_image_does_not_touch_another(device):
    arguments = add_arguments((3, 2, 3, 24), 16, torch.float16, device)
    with torch.no_grad():
        before = gated_linear_add(**arguments, backend='triton')
        arguments['x'][1] = torch.nan
        after = gated_linear_add(**arguments, backend='triton')
    assert after[1].isnan().all()
    assert torch.equal(before[::2], after[::2])


def test_gradients_are_those_of_the_definition(device):
    arguments = add_arguments((2, 3, 5, 24), 16, torch.float32, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    leaves = [x.requires_grad_() for x in arguments.values()]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    y = gated_linear_add(*leaves, backend='triton')
    expected = definition(*wide)
    dy = normal(*y.shape, device=device, seed=7)
    gradients = torch.autograd.grad(y, leaves, dy.float())
    wanted = torch.autograd.grad(expected, wide, dy)
    for name, one, other in zip(arguments, gradients, wanted, strict=True):
        assert relative_error(one, other) < 1e-5, name


@torch.no_grad()
def test_compiles_into_one_graph(device):
    arguments = add_arguments((2, 3, 5, 24), 16, torch.float32, device)
    compiled = torch.compile(
        gated_linear_add, fullgraph=True, backend='aot_eager'
    )
    y = compiled(**arguments, backend='triton')
    expected = gated_linear_add(**arguments, backend='torch')
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize('name', ['residual', 'logits', 'weight', 'bias'])
def test_wrong_shape_is_named(name):
    arguments = add_arguments((2, 3, 5, 24), 16)
    arguments[name] = arguments[name][..., :1]
    with pytest.raises(ValueError, match=f'^{name} must have shape .*1'):
        gated_linear_add(**arguments)


def test_tokens_without_a_map_are_refused():
    arguments = add_arguments((2, 3, 5, 24), 16)
    arguments['x'] = arguments['x'][0]
    with pytest.raises(ValueError, match='^x must be a map'):
        gated_linear_add(**arguments)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu():
    arguments = add_arguments((2, 3, 4, 16), 8, torch.float16, 'cuda:1')
    assert_kernel_is_right(arguments)


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason='needs a GPU of 40 GiB',
)
@torch.no_grad()
def test_more_elements_than_an_int32_counts():
    images = 2**31 // (64 * 64 * 64) + 1
    x = torch.zeros(images, 64, 64, 64, dtype=torch.bfloat16, device='cuda')
    x[-1] = normal(64, 64, 64).to(x)
    residual = torch.zeros_like(x)
    logits = normal(images, 64).float().cuda()
    weight = normal(64, 64).to(x)
    y = gated_linear_add(residual, x, logits, weight, backend='triton')
    last = residual[-1:], x[-1:], logits[-1:], weight
    expected = gated_linear_add(*last, backend='torch')
    assert relative_error(y[-1:], expected) < 1e-2
