from functools import partial

import pytest
import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import fold
from evmamba_mm.ops.fused.fold import fold_batch_norm

from ..scan_cases import relative_error
from .kernel_cases import DTYPES, normal

SHAPES = {
    'depthwise': (48, 1, 3, 3),
    'pointwise': (96, 48, 1, 1),
    'dense': (5, 7, 3, 3),
    'linear': (33, 131),
    'one-output': (1, 20),
    'one-weight': (50, 1),
    'wide': (3, 1536, 1, 1),
    'no-output': (0, 4),
}


def fold_arguments(shape, biased=True, dtype=torch.float64, device='cpu'):
    make = partial(normal, dtype=dtype, device=device)
    return dict(
        weight=make(*shape),
        bias=make(shape[0], seed=1) if biased else None,
        norm_weight=make(shape[0], seed=2),
        norm_bias=make(shape[0], seed=3),
        running_mean=make(shape[0], seed=4),
        running_var=make(shape[0], seed=5).square() + 0.1,
        eps=1e-3,
    )


def in_double(arguments):
    return {
        name: x.double() if isinstance(x, torch.Tensor) else x
        for name, x in arguments.items()
    }


@pytest.fixture(params=[False, True], ids=['no-bias', 'bias'])
def biased(request):
    return request.param


def test_twin_convolves_and_normalises(biased):
    arguments = fold_arguments((6, 3, 3, 3), biased)
    weight, bias, scale, shift, mean, variance, eps = arguments.values()
    x = normal(2, 3, 5, 7, seed=6)
    expected = F.batch_norm(
        F.conv2d(x, weight, bias), mean, variance, scale, shift, eps=eps
    )
    folded = fold_batch_norm(**arguments, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(x, *folded), expected)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_kernel(shape, biased, dtype, device):
    arguments = fold_arguments(shape, biased, torch.float32, device)
    kernel, twin = (
        fold_batch_norm(**arguments, dtype=dtype, backend=backend)
        for backend in ('triton', 'torch')
    )
    exact = fold_batch_norm(**in_double(arguments), dtype=torch.float64)
    # Triton's interpreter cuts a bfloat16 off where a GPU rounds it.
    rounding = max(1e-6, torch.finfo(dtype).eps)
    for mine, other, wide in zip(kernel, twin, exact, strict=True):
        assert mine.dtype == other.dtype == dtype
        bound = max(rounding, 2 * relative_error(other, wide))
        assert relative_error(mine, wide) <= bound


def test_every_place_is_written(device, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(
        torch, 'empty', lambda *a, **k: empty(*a, **k).fill_(torch.nan)
    )
    arguments = fold_arguments((37, 300), True, torch.float32, device)
    folded = fold_batch_norm(
        **arguments, dtype=torch.float16, backend='triton'
    )
    assert all(x.isfinite().all() for x in folded)


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_weight_of_another_layout(backend, device):
    arguments = fold_arguments((6, 5, 3, 3), True, torch.float32, device)
    exact = fold_batch_norm(**in_double(arguments), dtype=torch.float64)
    weight = arguments['weight'].to(memory_format=torch.channels_last)
    folded, _ = fold_batch_norm(
        **arguments | {'weight': weight}, dtype=torch.float32, backend=backend
    )
    assert folded.is_contiguous()
    assert relative_error(folded, exact[0]) < 1e-6


@pytest.mark.parametrize('backend', ['torch', 'triton'])
def test_parameters_in_half_precision(backend, device):
    arguments = fold_arguments((8, 5), True, torch.float16, device)
    folded = fold_batch_norm(**arguments, dtype=torch.float32, backend=backend)
    exact = fold_batch_norm(**in_double(arguments), dtype=torch.float64)
    for mine, wide in zip(folded, exact, strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, wide) < 1e-6


def test_opcheck(biased, device):
    arguments = fold_arguments((8, 5, 1, 1), biased, torch.float32, device)
    torch.library.opcheck(fold._fold, (*arguments.values(), torch.bfloat16))


def test_compiles_into_one_graph(biased, device):
    arguments = fold_arguments((8, 5), biased, torch.float32, device)
    function = partial(
        fold_batch_norm, **arguments, dtype=torch.bfloat16, backend='triton'
    )
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        pairs = zip(compiled(), function(), strict=True)
    for first, second in pairs:
        assert torch.equal(first, second)


@pytest.mark.parametrize('name', ['bias', 'norm_weight', 'running_var'])
def test_wrong_shape_is_named(name):
    arguments = fold_arguments((8, 5))
    arguments[name] = arguments[name][:7]
    with pytest.raises(ValueError, match=f'{name} must have shape .*7'):
        fold_batch_norm(**arguments, dtype=torch.float32)
