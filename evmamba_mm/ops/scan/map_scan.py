"""Selective scans of a channels-last feature map: ES2D's and SS2D's.

The kernels of 'cuda' and 'numba' read the feature map in place. The other
backends build the sequences and run :func:`selective_scan` on them.

Shape letters: B batch, H W feature map, D inner channels, G sequences, K
parameter sets, N states, R dt rank, L length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backend import choose_map_backend
from .cuda import (
    es2d_scan_cuda,
    geometry_served,
    numbers_served,
    ss2d_scan_cuda,
)
from .geometry import (
    FOUR_DIRECTIONS,
    AtrousGroups,
    CrossDirections,
    Geometry,
)
from .layout_ops import layout_of
from .numba_scan import es2d_scan_numba, numba_serves, ss2d_scan_numba
from .selective_scan import selective_scan


def _choose(
    geometry: Geometry, x: Tensor, parameters: Sequence[Tensor], backend: str
) -> str:
    """Backend for a checked map; one fp64 argument makes the scan fp64."""
    is_double = any(p.dtype == torch.float64 for p in parameters)
    return choose_map_backend(
        backend,
        x.device,
        torch.float64 if is_double else x.dtype,
        # A plain bool, also where the compiler traces a symbolic size.
        True
        if numbers_served(parameters[3].shape[1], parameters[1].shape[2])
        else False,
        geometry_served(geometry),
        numba_serves(x, *parameters),
    )


def by_sequence(
    geometry: Geometry, parameters: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Parameters of each sequence, (G, ...), from those of each set."""
    order = geometry.parameter_sets
    if order == tuple(range(geometry.sets)):
        return parameters
    gathered = []
    for x in parameters:
        # Stacked, since an index would be copied to the GPU in every call.
        # By reshape: some compilers do not trace unflatten under a mode.
        sets = x.reshape(geometry.sets, -1, *x.shape[1:]).unbind(0)
        gathered.append(torch.stack([sets[k] for k in order]).flatten(0, 1))
    return gathered


def _scan_sequences(
    geometry: Geometry, x: Tensor, parameters: Sequence[Tensor], backend: str
) -> Tensor:
    """Lay out the sequences (B, G, D, L), project and scan them, and merge."""
    rank, states = parameters[1].shape[-1], parameters[3].shape[-1]
    x_proj, dt_projs, dt_bias, A_logs, Ds = by_sequence(geometry, parameters)
    layout = layout_of(geometry, backend)
    xs = layout.scan(x)
    # Outside of autocast a half precision map may meet fp32 parameters.
    # Expanded, so that counters of products see the batch.
    batch = xs.shape[:1]
    x_proj, dt_projs = (
        x.to(xs.dtype).expand(*batch, -1, -1, -1) for x in (x_proj, dt_projs)
    )
    projected = x_proj @ xs
    dt, B, C = projected.split([rank, states, states], dim=2)
    delta = dt_projs.to(dt.dtype) @ dt
    # Half precision would round A's large decay rates, also under autocast.
    A = -torch.exp(A_logs if A_logs.dtype == torch.float64 else A_logs.float())
    y = selective_scan(
        xs.flatten(1, 2),
        delta.flatten(1, 2),
        A,
        B,
        C,
        Ds,
        dt_bias.flatten(),
        delta_softplus=True,
        backend=backend,
    )
    return layout.merge(y.view_as(xs), x.shape[1], x.shape[2])


def es2d_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step_size: int = 2,
    backend: str = 'auto',
) -> Tensor:
    """Atrous selective scan of a feature map: every group once, forward.

    There are ``K = min(4, step_size**2)`` parameter sets;
    :class:`AtrousGroups` says which group uses which.

    Args:
        x: Feature map of shape (B, H, W, D).
        x_proj_weight: Gives dt, B and C, in this order, (K, R + 2N, D).
        dt_projs_weight: From dt to step sizes, (K, D, R).
        dt_projs_bias: Bias of the step sizes, (K, D).
        A_logs: Logarithm of the negated decay rates, (K*D, N).
        Ds: Weight of the input in the output, (K*D,).
        step_size: Distance between two positions of a group.
        backend: One of :data:`BACKENDS`; 'cuda' is the fused kernel.

    Returns:
        Feature map of shape (B, H, W, D).

    Raises:
        ValueError: If a shape does not fit, or as :func:`selective_scan`.
        ImportError: If the chosen backend is not installed.

    Source: EfficientVMamba (arXiv:2403.09977), section 4.1, with the groups
    of the released weights.
    """
    geometry = AtrousGroups(step_size)
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    geometry.check(x, *parameters)
    backend = _choose(geometry, x, parameters, backend)
    if backend == 'cuda':
        return es2d_scan_cuda(x, *parameters, geometry)
    if backend == 'numba':
        return es2d_scan_numba(x, *parameters, geometry)
    return _scan_sequences(geometry, x, parameters, backend)


def ss2d_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    directions: tuple[str, ...] = FOUR_DIRECTIONS,
    backend: str = 'auto',
) -> Tensor:
    """Selective scan of a feature map in several directions, summed.

    There are ``K = len(directions)`` parameter sets, in the same order.

    Args:
        x: Feature map of shape (B, H, W, D).
        x_proj_weight: Gives dt, B and C, in this order, (K, R + 2N, D).
        dt_projs_weight: From dt to step sizes, (K, D, R).
        dt_projs_bias: Bias of the step sizes, (K, D).
        A_logs: Logarithm of the negated decay rates, (K*D, N).
        Ds: Weight of the input in the output, (K*D,).
        directions: At least one of 'rows', 'columns', 'rows_reversed' and
            'columns_reversed'; a name may be repeated. 'cuda' serves the
            default alone.
        backend: One of :data:`BACKENDS`; 'cuda' is the fused kernel.

    Returns:
        Feature map of shape (B, H, W, D).

    Raises:
        ValueError: If a shape or a direction does not fit, or as
            :func:`selective_scan`.
        ImportError: If the chosen backend is not installed.

    Source: VMamba (arXiv:2401.10166).
    """
    geometry = CrossDirections.of(directions)
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    geometry.check(x, *parameters)
    backend = _choose(geometry, x, parameters, backend)
    if backend == 'cuda':
        return ss2d_scan_cuda(x, *parameters, geometry)
    if backend == 'numba':
        return ss2d_scan_numba(x, *parameters, geometry)
    return _scan_sequences(geometry, x, parameters, backend)
