"""A kernel beside its twin, and both against fp64."""

import torch
from torch import Tensor

from ..scan_cases import relative_error

DTYPES = {
    'fp32': torch.float32,
    'fp16': torch.float16,
    'bf16': torch.bfloat16,
}

_ZERO = 1e-9
_ROUNDING = 1e-3


def normal(
    *shape: int,
    dtype: torch.dtype = torch.float64,
    device: str = 'cpu',
    seed: int = 0,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).to(device)


def results(
    op,
    arguments: dict[str, Tensor | None],
    backend: str,
    dtype: torch.dtype,
    fixed: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Output of an op and the gradient of every argument not in ``fixed``."""
    leaves = {
        name: None
        if x is None
        else x.detach().requires_grad_(name not in fixed)
        for name, x in arguments.items()
    }
    y = op(**leaves, backend=backend)
    wanted = {
        name: x
        for name, x in leaves.items()
        if x is not None and x.requires_grad
    }
    dy = normal(*y.shape, dtype=dtype, device=y.device, seed=7).to(y.dtype)
    gradients = torch.autograd.grad(y, list(wanted.values()), dy)
    return {'output': y.detach(), **dict(zip(wanted, gradients, strict=True))}


def assert_kernel_is_right(
    op,
    arguments: dict[str, Tensor | None],
    dtype: torch.dtype,
    fixed: tuple[str, ...] = (),
) -> None:
    """The kernel is as near to fp64 as the twin is, up to a factor."""
    wide = {
        name: None if x is None else x.double()
        for name, x in arguments.items()
    }
    kernel = results(op, arguments, 'triton', dtype, fixed)
    twin = results(op, arguments, 'torch', dtype, fixed)
    exact = results(op, wide, 'torch', dtype, fixed)
    # Triton's interpreter cuts a bfloat16 off where a GPU rounds it.
    cut = dtype == torch.bfloat16 and not kernel['output'].is_cuda
    factor = 4 if cut else 2
    assert kernel.keys() == exact.keys()
    for name, value in kernel.items():
        assert value.dtype == twin[name].dtype, name
        if exact[name].norm() < _ZERO * exact[name].numel() ** 0.5:
            # Of one channel the norm is constant. Rounding, times the 316
            # that an eps of 1e-5 leaves of no variance, is all there is.
            assert value.abs().max() < _ROUNDING, name
            continue
        bound = max(1e-5, factor * relative_error(twin[name], exact[name]))
        assert relative_error(value, exact[name]) <= bound, name


def assert_inference_is_right(
    op,
    actual: Tensor,
    arguments: dict[str, Tensor],
    dtype: torch.dtype,
    least: float = 1e-5,
) -> None:
    """What a kernel without gradients gave is as near to fp64 as the twin."""
    wide = {name: x.double() for name, x in arguments.items()}
    exact = op(**wide, backend='torch')
    twin = op(**arguments, backend='torch')
    assert actual.dtype == twin.dtype and actual.shape == twin.shape
    assert actual.is_contiguous()
    factor = 4 if dtype == torch.bfloat16 else 2
    bound = max(least, factor * relative_error(twin, exact))
    assert relative_error(actual, exact) <= bound


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
