"""A function beside its reference, and both against fp64."""

from collections.abc import Callable

import torch
from torch import Tensor

# Relative error that is always allowed, by the dtype of the result.
LEAST = {
    torch.float64: 1e-10,
    torch.float32: 3e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}
# Of the reference's own error in the same dtype.
FACTOR = 4


class Wrong(Exception):
    """What a trial found to be wrong."""


def results(
    function: Callable[..., Tensor],
    arguments: dict[str, Tensor | None],
    mode: str,
) -> dict[str, Tensor]:
    """What a function gives in a mode: 'forward', 'gradients' or 'jvp'."""
    given = {k: v for k, v in arguments.items() if v is not None}
    rest = {k: None for k, v in arguments.items() if v is None}
    if mode == 'forward':
        with torch.no_grad():
            return dict(output=function(**given, **rest))
    if mode == 'jvp':
        names, values = zip(*given.items(), strict=True)
        y, tangent = torch.func.jvp(
            lambda *x: function(**dict(zip(names, x, strict=True)), **rest),
            values,
            tuple(direction(v, i) for i, v in enumerate(values)),
        )
        return dict(output=y, tangent=tangent)
    leaves = {k: v.detach().requires_grad_() for k, v in given.items()}
    y = function(**leaves, **rest)
    gradients = torch.autograd.grad(
        y, list(leaves.values()), direction(y, 99), allow_unused=True
    )
    return dict(output=y.detach()) | {
        name: torch.zeros_like(leaves[name]) if g is None else g
        for name, g in zip(leaves, gradients, strict=True)
    }


def direction(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return numbers.to(x)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    scale = expected.double().norm().clamp_min(1e-6)
    return float((actual.double() - expected.double()).norm() / scale)


def compare(
    run: Callable[..., Tensor],
    naive: Callable[..., Tensor],
    arguments: dict[str, Tensor | None],
    mode: str,
) -> None:
    """Fail if a result is farther from fp64 than the reference's allow.

    Raises:
        Wrong: It names the result and the errors.
    """
    wide = {k: None if v is None else v.double() for k, v in arguments.items()}
    exact = results(naive, wide, mode)
    narrow = results(naive, arguments, mode)
    actual = results(run, arguments, mode)
    for name, value in actual.items():
        check_near(f'{mode}, {name}', value, narrow[name], exact[name])


def check_near(
    name: str, actual: Tensor, narrow: Tensor, exact: Tensor
) -> None:
    """Fail if ``actual`` is wrong; see :func:`compare`."""
    if actual.shape != exact.shape or actual.dtype != narrow.dtype:
        raise Wrong(
            f'{name}: {tuple(actual.shape)} in {actual.dtype}, not '
            f'{tuple(exact.shape)} in {narrow.dtype}'
        )
    if not narrow.isfinite().all():
        # The dtype cannot hold the result; no number is right.
        return
    own = relative_error(narrow, exact)
    error = relative_error(actual, exact)
    if not error <= max(LEAST[narrow.dtype], FACTOR * own):
        raise Wrong(f'{name}: error {error:.1e}, of plain torch {own:.1e}')
