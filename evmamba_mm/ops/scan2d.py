"""Selective scans of a channels-last map: ES2D's and SS2D's.

The kernels of 'cuda' and 'numba' read the map where it lies. The others build
the sequences and run :func:`selective_scan` on them.

Shape letters: B batch, H W map, D inner channels, G sequences, K parameter
sets, N states, R dt rank, L length.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .atrous import (
    atrous_merge,
    atrous_parameter_sets,
    atrous_scan,
    check_step_size,
)
from .backend import choose_scan2d_backend
from .cross import cross_merge, cross_scan
from .scan_cuda import es2d_cuda, rows_to_read, scan2d_cuda
from .scan_numba import es2d_scan_numba, numba_serves, ss2d_scan_numba
from .selective_scan import selective_scan


def _check_parameters(
    x: Tensor,
    sets: int,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> None:
    if x.dim() != 4:
        raise ValueError(
            f'x must have shape (B, H, W, D), got {tuple(x.shape)}'
        )
    channels, states = x.shape[3], A_logs.shape[-1]
    rank = dt_projs_weight.shape[-1]
    for name, tensor, shape in (
        ('x_proj_weight', x_proj_weight, (sets, rank + 2 * states, channels)),
        ('dt_projs_weight', dt_projs_weight, (sets, channels, rank)),
        ('dt_projs_bias', dt_projs_bias, (sets, channels)),
        ('A_logs', A_logs, (sets * channels, states)),
        ('Ds', Ds, (sets * channels,)),
    ):
        if tensor.shape != shape:
            raise ValueError(
                f'{name} must have shape {shape} for x of shape '
                f'{tuple(x.shape)}, got {tuple(tensor.shape)}'
            )


def _choose(x: Tensor, parameters: Sequence[Tensor], backend: str) -> str:
    """Backend for a map; one fp64 argument makes the whole scan fp64."""
    wide = any(p.dtype == torch.float64 for p in parameters)
    dtype = torch.float64 if wide else x.dtype
    states = parameters[3].shape[-1]
    fits = numba_serves(x, *parameters)
    return choose_scan2d_backend(backend, x.device, dtype, states, fits)


def _project_and_scan(
    xs: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    backend: str,
) -> Tensor:
    """Scan sequences (B, G, D, L), one parameter set a sequence."""
    rank, states = dt_projs_weight.shape[-1], A_logs.shape[-1]
    # Outside of autocast a half precision map may meet fp32 parameters.
    weight = x_proj_weight.to(xs.dtype)
    projected = torch.einsum('bgdl,gcd->bgcl', xs, weight)
    dt, B, C = projected.split([rank, states, states], dim=2)
    weight = dt_projs_weight.to(dt.dtype)
    delta = torch.einsum('bgrl,gdr->bgdl', dt, weight)
    # Half precision would round A's large decay rates, also under autocast.
    A = -torch.exp(A_logs if A_logs.dtype == torch.float64 else A_logs.float())
    y = selective_scan(
        xs.flatten(1, 2),
        delta.flatten(1, 2),
        A,
        B,
        C,
        Ds,
        dt_projs_bias.flatten(),
        delta_softplus=True,
        backend=backend,
    )
    return y.view_as(xs)


def _of_groups(
    parameters: Sequence[Tensor], step_size: int
) -> tuple[Tensor, ...]:
    """Parameters of each group, of those of four sets."""
    *by_set, A_logs, Ds = parameters
    sets = atrous_parameter_sets(step_size)
    index = torch.tensor(sets, device=Ds.device)
    return (
        *(x[index] for x in by_set),
        A_logs.unflatten(0, (4, -1))[index].flatten(0, 1),
        Ds.unflatten(0, (4, -1))[index].flatten(),
    )


def es2d_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step_size: int = 2,
    backend: str = 'auto',
    rows: Tensor | None = None,
) -> Tensor:
    """Atrous selective scan of a map: every group once, forwards.

    There are ``K = min(4, step_size**2)`` parameter sets; which group uses
    which is told by :func:`atrous_parameter_sets`.

    Args:
        x: Map of shape (B, H, W, D).
        x_proj_weight: Gives dt, B and C, in this order, (K, R + 2N, D).
        dt_projs_weight: From dt to step sizes, (K, D, R).
        dt_projs_bias: Bias of the step sizes, (K, D).
        A_logs: Logarithm of the negated decay rates, (K*D, N).
        Ds: Weight of the input in the output, (K*D,).
        step_size: Distance between two cells of a group.
        backend: One of :data:`BACKENDS`; 'cuda' is the fused kernel.
        rows: ``x_proj_weight`` with the rows moved by
            :func:`scan_row_layout`, in the dtype of ``x``, if it is at hand:
            'cuda' reads it instead where no gradient is asked for.

    Returns:
        Map of shape (B, H, W, D).

    Raises:
        ValueError: If a shape does not fit, or as :func:`selective_scan`.
        ImportError: If the chosen backend is not installed.

    Source: EfficientVMamba (arXiv:2403.09977), section 4.1, with the groups
    of the released weights.
    """
    check_step_size(step_size)
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    _check_parameters(x, min(4, step_size**2), *parameters)
    backend = _choose(x, parameters, backend)
    if backend == 'cuda':
        return es2d_cuda(x, *parameters, step_size, rows)
    if backend == 'numba':
        return es2d_scan_numba(x, *parameters, step_size)
    xs = atrous_scan(x, step_size)
    if step_size > 2:
        parameters = _of_groups(parameters, step_size)
    y = _project_and_scan(xs, *parameters, backend)
    return atrous_merge(y, x.shape[1], x.shape[2], step_size)


def ss2d_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    backend: str = 'auto',
    rows: Tensor | None = None,
) -> Tensor:
    """Selective scan of a whole map in VMamba's four directions, summed.

    Args:
        x: Map of shape (B, H, W, D).
        x_proj_weight: Gives dt, B and C, in this order, (4, R + 2N, D).
        dt_projs_weight: From dt to step sizes, (4, D, R).
        dt_projs_bias: Bias of the step sizes, (4, D).
        A_logs: Logarithm of the negated decay rates, (4*D, N).
        Ds: Weight of the input in the output, (4*D,).
        backend: One of :data:`BACKENDS`; 'cuda' is the fused kernel.
        rows: As of :func:`es2d_scan`.

    Returns:
        Map of shape (B, H, W, D).

    Raises:
        ValueError: If a shape does not fit, or as :func:`selective_scan`.
        ImportError: If the chosen backend is not installed.

    Source: VMamba (arXiv:2401.10166).
    """
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    _check_parameters(x, 4, *parameters)
    backend = _choose(x, parameters, backend)
    if backend == 'cuda':
        weight = rows_to_read(rows, x, x_proj_weight, A_logs.shape[1])
        # Outside of autocast a half precision map may meet fp32 parameters.
        proj = F.linear(x, weight.flatten(0, 1).to(x.dtype))
        return scan2d_cuda(x, proj, *parameters[1:], 1, cross=True)
    if backend == 'numba':
        return ss2d_scan_numba(x, *parameters)
    y = _project_and_scan(cross_scan(x), *parameters, backend)
    return cross_merge(y, x.shape[1], x.shape[2])
