"""The scan ops of an exported program, written in ops of torch itself.

Shape letters: B batch, H W feature map, D inner channels, G sequences, K
parameter sets, N states, R dt rank, L length.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..ops.scan.geometry import (
    DIRECTIONS,
    AtrousGroups,
    CrossDirections,
    Geometry,
)
from ..ops.scan.map_scan import by_sequence
from .program import TRACING
from .scans import scan_in_chunks, scan_written_out, softplus

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _read(geometry: Geometry, x: Tensor) -> Tensor:
    """Read a feature map (B, H, W, D) as (G, B, L, D)."""
    batch, height, width, channels = x.shape
    # Cells count from 1, so that the geometry's padding names row 0.
    cells = torch.arange(1, height * width + 1, device=x.device)
    order = geometry.scan(cells.view(1, height, width, 1)).flatten()
    rows = x.reshape(batch, height * width, channels)
    rows = torch.cat([x.new_zeros(batch, 1, channels), rows], 1)
    sequences = rows.index_select(1, order)
    sequences = sequences.reshape(batch, geometry.sequences, -1, channels)
    return sequences.transpose(0, 1).contiguous()


def _write(geometry: Geometry, y: Tensor, height: int, width: int) -> Tensor:
    """Write sequences (G, B, L, D) to a feature map (B, H, W, D)."""
    if not isinstance(geometry, AtrousGroups):
        return geometry.merge(y.permute(1, 0, 3, 2), height, width)
    groups, batch, length, channels = y.shape
    places = torch.arange(groups * length, device=y.device)
    places = geometry.merge(places.view(1, groups, 1, length), height, width)
    rows = y.transpose(0, 1).reshape(batch, groups * length, channels)
    rows = rows.index_select(1, places.flatten())
    return rows.reshape(batch, height, width, channels)


def _scan_map(
    scan: Scan, geometry: Geometry, x: Tensor, *parameters: Tensor
) -> Tensor:
    """Scan a feature map (B, H, W, D); parameters as of ``es2d_scan``."""
    batch, height, width, channels = x.shape
    x_proj, dt_projs, bias, A_logs, Ds = by_sequence(geometry, parameters)
    groups, rank, states = len(x_proj), dt_projs.shape[2], A_logs.shape[1]
    u = _read(geometry, x)
    projected = u.reshape(groups, -1, channels) @ x_proj.mT
    dt, B, C = projected.split([rank, states, states], -1)
    delta = dt @ dt_projs.mT + bias[:, None]

    def by_image(x: Tensor) -> Tensor:
        return x.reshape(groups, batch, -1, x.shape[-1])

    y = scan(
        u,
        by_image(softplus(delta)),
        -A_logs.exp().reshape(groups, channels, states).mT,
        by_image(B),
        by_image(C),
    )
    D = Ds.reshape(groups, 1, 1, channels)
    return _write(geometry, y + D * u, height, width)


def _scan_sequences(
    scan: Scan,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Scan sequences (B, K*D, L); arguments as of ``selective_scan``."""
    groups = B.shape[1]
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = softplus(delta)

    def channels_last(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, -1)).permute(1, 0, 3, 2)

    y = scan(
        channels_last(u),
        channels_last(delta),
        A.unflatten(0, (groups, -1)).mT,
        B.permute(1, 0, 3, 2),
        C.permute(1, 0, 3, 2),
    )
    y = y.permute(1, 0, 3, 2).flatten(1, 2)
    return y if D is None else y + D[:, None] * u


def decompose_scans(
    program: ExportedProgram, written_out: bool = False
) -> ExportedProgram:
    """Replace each scan op of a program by ops of torch.

    Args:
        program: Of :func:`evmamba_mm.export.export_program`.
        written_out: Whether every step becomes nodes of its own, for runtimes
            without a loop; height and width must then be fixed.

    Returns:
        A program without ops of this package.
    """
    scan = scan_written_out if written_out else scan_in_chunks

    def es2d(x, *rest):
        *parameters, step_size = rest
        return _scan_map(scan, AtrousGroups(step_size), x, *parameters)

    def ss2d(x, *rest):
        *parameters, codes = rest
        geometry = CrossDirections(tuple(DIRECTIONS[k] for k in codes))
        return _scan_map(scan, geometry, x, *parameters)

    def sequences(*arguments):
        return _scan_sequences(scan, *arguments)

    ops = torch.ops.evmamba_mm
    with TRACING:
        return program.run_decompositions(
            {
                ops.es2d_scan_numba.default: es2d,
                ops.ss2d_scan_numba.default: ss2d,
                ops.selective_scan_numba.default: sequences,
            }
        )
