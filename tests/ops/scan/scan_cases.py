"""Arguments and references for tests of the scan."""

import torch
from torch import Tensor

DIRECTION_CHOICES = (
    ('columns_reversed',),
    ('columns', 'rows_reversed'),
    ('rows', 'columns', 'rows_reversed', 'columns_reversed'),
    ('rows', 'rows', 'columns_reversed', 'columns', 'rows_reversed'),
)
NAMES = ('u', 'delta', 'A', 'B', 'C', 'D', 'delta_bias')


def devices() -> list[str]:
    return ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])


def scan_arguments(
    batch: int = 2,
    groups: int = 3,
    channels: int = 5,
    states: int = 4,
    length: int = 37,
    dtype: torch.dtype = torch.float64,
    device: str = 'cpu',
    scale: float = 1.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random arguments: fp64 numbers that ``dtype`` represents exactly."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x * scale).to(dtype).to(device)

    wide = groups * channels
    return dict(
        u=normal(batch, wide, length),
        delta=normal(batch, wide, length),
        A=-normal(wide, states).abs() * 3,
        B=normal(batch, groups, states, length),
        C=normal(batch, groups, states, length),
        D=normal(wide),
        delta_bias=normal(wide),
    )


def map_parameters(
    sets: int,
    dtype: torch.dtype = torch.float32,
    channels: int = 4,
    states: int = 3,
    rank: int = 2,
    device: str = 'cpu',
) -> dict[str, Tensor]:
    """Random parameters of the scan of a map, in the order of es2d_scan.

    They project a standard normal map to numbers of about that size: torch's
    softplus is off by 2e-9 above 20.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return dict(
        x_proj_weight=normal(sets, rank + 2 * states, channels)
        * channels**-0.5,
        dt_projs_weight=normal(sets, channels, rank),
        dt_projs_bias=normal(sets, channels),
        A_logs=normal(sets * channels, states),
        Ds=normal(sets * channels),
    )


def loop_reference(
    u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True
) -> Tensor:
    """One channel and one step at a time, in fp64, by the equations."""
    u, delta, A, B, C = (x.double() for x in (u, delta, A, B, C))
    y = torch.zeros_like(u)
    per_group = u.shape[1] // B.shape[1]
    for b in range(u.shape[0]):
        for d in range(u.shape[1]):
            h = torch.zeros(A.shape[1], dtype=torch.float64)
            for t in range(u.shape[2]):
                step = delta[b, d, t]
                if delta_bias is not None:
                    step = step + delta_bias[d].double()
                if delta_softplus:
                    step = torch.logaddexp(step, torch.zeros_like(step))
                k = d // per_group
                h = torch.exp(step * A[d]) * h
                h = h + step * B[b, k, :, t] * u[b, d, t]
                y[b, d, t] = (h * C[b, k, :, t]).sum()
                if D is not None:
                    y[b, d, t] += D[d].double() * u[b, d, t]
    return y


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected, in fp64."""
    assert actual.shape == expected.shape
    actual, expected = actual.double().cpu(), expected.double().cpu()
    assert actual.isfinite().all()
    # A gradient that is zero by the equations may come out as rounding.
    scale = expected.norm().clamp(min=1e-6)
    return ((actual - expected).norm() / scale).item()


def value_and_gradients(function, arguments: dict[str, Tensor], seed: int = 1):
    """Output of ``function`` and the gradient of each argument by name."""
    leaves = {
        k: v.detach().clone().requires_grad_() for k, v in arguments.items()
    }
    y = function(**leaves)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    loss = (y * weight.to(y)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return y.detach(), dict(zip(leaves, gradients, strict=True))
