"""A kernel beside its reference in plain torch, and both against fp64."""

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = {
    'fp32': torch.float32,
    'fp16': torch.float16,
    'bf16': torch.bfloat16,
}

_ZERO = 1e-9
_ROUNDING = 1e-3


def normal(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    device: str = 'cpu',
    seed: int = 0,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).to(device)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-30))


def results(
    function: Callable[..., Tensor],
    arguments: dict[str, Tensor | None],
    fixed: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Output and the gradient of every argument that is not in ``fixed``."""
    leaves = {
        name: None
        if x is None
        else x.detach().requires_grad_(name not in fixed)
        for name, x in arguments.items()
    }
    y = function(**leaves)
    wanted = {
        name: x
        for name, x in leaves.items()
        if x is not None and x.requires_grad
    }
    dy = normal(*y.shape, dtype=torch.float64, seed=7).to(y)
    gradients = torch.autograd.grad(y, list(wanted.values()), dy)
    return {'output': y.detach(), **dict(zip(wanted, gradients, strict=True))}


def assert_close_to_reference(
    kernel: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    arguments: dict[str, Tensor | None],
    fixed: tuple[str, ...] = (),
    least: float = 1e-5,
) -> None:
    """The kernel is as near to fp64 as plain torch is, up to a factor.

    Args:
        kernel: Function of the arguments by name.
        reference: The same in plain torch, in the dtype of its arguments; it
            must return the kernel's dtype.
        arguments: Tensors by name.
        fixed: Arguments without a gradient.
        least: Relative error that is always allowed.
    """
    wide = {k: None if x is None else x.double() for k, x in arguments.items()}
    exact = results(reference, wide, fixed)
    narrow = results(reference, arguments, fixed)
    actual = results(kernel, arguments, fixed)
    # Triton's interpreter cuts a bfloat16 off where a GPU rounds it.
    cut = actual['output'].dtype == torch.bfloat16
    factor = 4 if cut and not actual['output'].is_cuda else 2
    assert actual.keys() == exact.keys()
    for name, value in actual.items():
        assert value.dtype == narrow[name].dtype, name
        assert value.shape == narrow[name].shape, name
        if exact[name].norm() < _ZERO * exact[name].numel() ** 0.5:
            assert value.abs().max() < _ROUNDING, name
            continue
        bound = max(least, factor * relative_error(narrow[name], exact[name]))
        assert relative_error(value, exact[name]) <= bound, name
