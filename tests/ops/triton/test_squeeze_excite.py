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

from evmamba_mm.ops.triton import common
from evmamba_mm.ops.triton import squeeze_excite as family
from evmamba_mm.ops.triton.squeeze_excite import (
    squeeze_excite,
)

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16

# Map and hidden channels.
CASES = {
    'odd-map': ((2, 7, 9, 48), 6),
    'one-cell': ((3, 1, 1, 96), 12),
    'one-channel': ((2, 3, 3, 1), 1),
    'prime-channels': ((2, 3, 4, 131), 7),
    'wide': ((1, 7, 7, 1536), 16),
    'long': ((1, 31, 17, 24), 3),
    'no-image': ((0, 2, 2, 48), 6),
}


@pytest.fixture(autouse=True)
def tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def full_precision(tf32):
    torch.backends.cuda.matmul.allow_tf32 = False


def plain_logits(x, reduce_weight, reduce_bias, expand_weight, expand_bias):
    wide = torch.promote_types(x.dtype, FLOAT)
    mean = x.to(wide).mean((1, 2)).to(reduce_weight.dtype)
    hidden = F.linear(mean, reduce_weight, reduce_bias).relu()
    return F.linear(hidden, expand_weight, expand_bias)


def plain(x, *, dtype=None, **parameters):
    """In ``dtype``, or in the dtype of x."""
    wide = torch.promote_types(x.dtype, FLOAT)
    gate = plain_logits(x, **parameters).to(wide).sigmoid()
    if x.dtype == torch.float64 or dtype is None:
        dtype = x.dtype
    return (x.to(wide) * gate[:, None, None]).to(dtype)


def make_arguments(
    shape=(2, 3, 5, 48), hidden=6, dtype=FLOAT, device='cpu', gates=FLOAT
):
    make = partial(normal, dtype=gates, device=device)
    channels = shape[-1]
    # Gates that are neither open nor shut show every error.
    return dict(
        x=normal(*shape, dtype=dtype, device=device) + 0.5,
        reduce_weight=make(hidden, channels, seed=1) / channels**0.5,
        reduce_bias=make(hidden, seed=2),
        expand_weight=make(channels, hidden, seed=3) / hidden**0.5,
        expand_bias=make(channels, seed=4),
    )


def check(arguments, dtype=None, fixed=()):
    dtype = dtype or arguments['x'].dtype
    assert_close_to_reference(
        partial(squeeze_excite, dtype=dtype),
        partial(plain, dtype=dtype),
        arguments,
        fixed,
    )


def as_double(arguments):
    return {
        name: None if x is None else x.double()
        for name, x in arguments.items()
    }


@pytest.mark.usefixtures('full_precision')
class TestSqueezeExcite:
    @pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
    @pytest.mark.parametrize('shape, hidden', CASES.values(), ids=CASES)
    def test_kernel(self, shape, hidden, dtype, device):
        check(make_arguments(shape, hidden, dtype, device))

    def test_without_gradients(self, device):
        arguments = make_arguments(device=device)
        expected = squeeze_excite(**arguments, dtype=FLOAT)
        with torch.no_grad():
            y = squeeze_excite(**arguments, dtype=FLOAT)
        assert torch.equal(y, expected)

    @pytest.mark.parametrize(
        'multiprocessors', [0, 10**6], ids=['few', 'many']
    )
    @pytest.mark.parametrize('channels', [100, 300])
    def test_any_number_of_programs(
        self, channels, multiprocessors, device, monkeypatch
    ):
        limits = common.LIMITS._replace(multiprocessors=multiprocessors)
        monkeypatch.setattr(common, 'LIMITS', limits)
        split_rows = common.split_rows.__wrapped__
        monkeypatch.setattr(family, 'split_rows', split_rows)
        check(make_arguments((2, 9, 11, channels), 5, FLOAT, device))

    def test_map_with_strides(self, device):
        x = normal(2, 3, 5, 96, device=device)
        for view in (
            x[:, :, 1:],
            x[..., :48],
            x.transpose(1, 2),
            x.permute(0, 3, 1, 2),
            x[:1].expand(2, -1, -1, -1),
        ):
            arguments = make_arguments(view.shape, 4, FLOAT, device)
            check(arguments | {'x': view})

    @pytest.mark.parametrize('layout', ['channels-first', 'expanded'])
    def test_gradient_with_strides(self, layout, device):
        arguments = make_arguments(device=device)
        if layout == 'expanded':
            dy = normal(2, 1, 1, 48, device=device).expand(2, 3, 5, 48)
        else:
            dy = normal(2, 48, 3, 5, device=device).permute(0, 2, 3, 1)
        leaves = [x.requires_grad_() for x in arguments.values()]
        y = squeeze_excite(*leaves, FLOAT)
        values = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        expected = torch.autograd.grad(y, leaves, dy.contiguous())
        for value, other in zip(values, expected, strict=True):
            assert relative_error(value, other) < 1e-5

    def test_gates_in_half_precision(self, device):
        check(make_arguments(dtype=HALF, device=device, gates=HALF))

    @pytest.mark.parametrize('gates', [FLOAT, BFLOAT], ids=['fp32', 'bf16'])
    @pytest.mark.parametrize('x', [FLOAT, BFLOAT], ids=['fp32', 'bf16'])
    def test_under_autocast(self, x, gates, device):
        arguments = make_arguments(dtype=x, device=device, gates=gates)
        exact = results(plain, as_double(arguments))
        with torch.autocast(device, BFLOAT):
            values = results(partial(squeeze_excite, dtype=BFLOAT), arguments)
        assert values['output'].dtype == BFLOAT
        # The gradient dy is a rounded one in any case.
        for name, value in values.items():
            assert relative_error(value, exact[name]) < 2e-2, name

    def test_parameters_alone_get_gradients(self, device):
        check(make_arguments(device=device), fixed=('x',))

    def test_two_runs_are_the_same(self, device):
        arguments = make_arguments((2, 9, 9, 48), 6, BFLOAT, device)
        kernel = partial(squeeze_excite, dtype=BFLOAT)
        first, second = (results(kernel, arguments) for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), name

    def test_second_derivative_is_refused(self, device):
        arguments = make_arguments(device=device)
        x = arguments['x'].requires_grad_()
        y = squeeze_excite(**arguments, dtype=FLOAT)
        with pytest.raises(RuntimeError, match='differentiate twice'):
            torch.autograd.grad(y.square().sum(), x, create_graph=True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_second_gpu():
    check(make_arguments((2, 3, 4, 16), 4, HALF, 'cuda:1'))
