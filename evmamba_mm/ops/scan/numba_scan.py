"""The selective scan on a CPU by kernels that numba compiles, forward only.

The map is read in place: neither sequences nor step sizes are stored.

Shape letters: B batch, H W feature map, D inner channels, G sequences, K
parameter sets, N states, R dt rank, L length, M cells of a map.
"""

import functools
import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import DIRECTIONS, AtrousGroups, CrossDirections

INSTALL_LINE = 'pip install "evmamba_mm[numba]"'


@functools.cache
def numba_installed() -> bool:
    """Tell whether numba is installed, without importing it."""
    return importlib.util.find_spec('numba') is not None


def numba_serves(*tensors: Tensor | None) -> bool:
    """Tell whether the kernels can scan these arguments.

    Args:
        tensors: Arguments of a scan; None for an absent one.

    Returns:
        Whether all lie on the CPU in fp32 and none requires a gradient.
    """
    given = [x for x in tensors if x is not None]
    for x in given:
        if x.device.type != 'cpu' or x.dtype != torch.float32:
            return False
    return not (
        torch.is_grad_enabled() and any(x.requires_grad for x in given)
    )


@functools.cache
def _kernels():
    try:
        from . import numba_kernels
    except ImportError as error:
        raise ImportError(
            f"backend 'numba' needs numba: {INSTALL_LINE}"
        ) from error
    return numba_kernels


def _in_blocks(x: Tensor, lanes: int) -> Tensor:
    """(G, ..., D) to (G, blocks, ..., lanes), padded with zeros."""
    blocks = -(-x.shape[-1] // lanes)
    x = F.pad(x, (0, blocks * lanes - x.shape[-1]))
    return x.unflatten(-1, (blocks, lanes)).movedim(-2, 1).contiguous()


def _call_kernel(
    u: Tensor,
    cells: Tensor,
    rows: Tensor,
    projected: Tensor,
    given: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_softplus: bool,
    planes: int,
) -> Tensor:
    """Output (B, planes, M, D) of sequences.

    ``dt_weight`` (G, R, D), ``A`` (G, N, D) and ``D`` (G, D) are channels
    last; the other arguments are the kernel's.
    """
    kernels = _kernels()
    y = u.new_empty(u.shape[0], planes, *u.shape[1:])
    arguments = [
        u.contiguous(),
        cells,
        rows,
        projected.contiguous(),
        given.contiguous(),
        *(
            _in_blocks(x, kernels.LANES)
            for x in (dt_weight, A * math.log2(math.e), D)
        ),
    ]
    arrays = [x.detach().numpy() for x in arguments]
    kernels.scan(*arrays, delta_softplus, y.numpy(), torch.get_num_threads())
    return y


# The orders are computed inside the ops, where sizes are never symbolic.
@functools.lru_cache(64)
def _atrous_order(
    geometry: AtrousGroups, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Cell of the map and cell of the group of each step, (G, L) each."""
    step = geometry.step
    cells = torch.arange(height * width).view(1, height, width, 1)
    rows, cols = height // step, width // step
    assert rows * cols * step**2 == height * width
    first = torch.arange(height)[:, None] // step * cols
    local = (first + torch.arange(width) // step)[None, ..., None]
    return tuple(
        geometry.scan(x)[0, :, 0].contiguous() for x in (cells, local)
    )


@functools.lru_cache(64)
def _cross_order(geometry: CrossDirections, height: int, width: int) -> Tensor:
    """Cell of each step of each direction, (G, L)."""
    cells = torch.arange(height * width).view(1, height, width, 1)
    return geometry.scan(cells)[0, :, 0].contiguous()


@torch.library.custom_op('evmamba_mm::es2d_scan_numba', mutates_args=())
def _es2d_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step_size: int,
) -> Tensor:
    geometry = AtrousGroups(step_size)
    geometry.check(
        x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds
    )
    batch, height, width, channels = x.shape
    p = step_size
    x = F.pad(x, (0, 0, 0, -width % p, 0, -height % p))
    rows, cols = x.shape[1] // p, x.shape[2] // p
    cells, local = _atrous_order(geometry, x.shape[1], x.shape[2])
    sets = torch.tensor(geometry.parameter_sets)
    # (j, i) outside, since group g = i + p * j.
    groups = x.view(batch, rows, p, cols, p, channels)
    groups = groups.permute(4, 2, 0, 1, 3, 5)
    groups = groups.reshape(p * p, batch * rows * cols, channels)
    projected = torch.bmm(groups, x_proj_weight[sets].mT)
    y = _call_kernel(
        x.flatten(1, 2),
        cells,
        local,
        projected.unflatten(1, (batch, rows * cols)),
        dt_projs_bias[sets][None, :, None],
        dt_projs_weight.mT[sets],
        -A_logs.exp().unflatten(0, (-1, channels)).mT[sets],
        Ds.view(-1, channels)[sets],
        delta_softplus=True,
        planes=1,
    )
    y = y.view_as(x)
    if y.shape[1:3] != (height, width):
        y = y[:, :height, :width].contiguous()
    return y


# The schema is spelt out because older torch does not read `list[int]`.
@torch.library.custom_op(
    'evmamba_mm::ss2d_scan_numba',
    mutates_args=(),
    schema=(
        '(Tensor x, Tensor x_proj_weight, Tensor dt_projs_weight, '
        'Tensor dt_projs_bias, Tensor A_logs, Tensor Ds, int[] directions) '
        '-> Tensor'
    ),
)
def _ss2d_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    directions: list[int],
) -> Tensor:
    geometry = CrossDirections(tuple(DIRECTIONS[k] for k in directions))
    geometry.check(
        x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds
    )
    batch, height, width, channels = x.shape
    order = _cross_order(geometry, height, width)
    u = x.reshape(batch, height * width, channels)
    y = _call_kernel(
        u,
        order,
        order,
        torch.matmul(u, x_proj_weight.mT[:, None]),
        dt_projs_bias[None, :, None],
        dt_projs_weight.mT,
        -A_logs.exp().unflatten(0, (-1, channels)).mT,
        Ds.view(-1, channels),
        delta_softplus=True,
        planes=geometry.sequences,
    )
    return y.sum(1).view_as(x)


@torch.library.custom_op('evmamba_mm::selective_scan_numba', mutates_args=())
def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    batch, groups, states, length = B.shape
    channels = u.shape[1] // groups
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if D is None:
        D = u.new_zeros(u.shape[1])

    def channels_last(x: Tensor) -> Tensor:
        return x.unflatten(1, (groups, -1)).mT.contiguous()

    steps = torch.arange(groups * length).view(groups, length)
    y = _call_kernel(
        channels_last(u).flatten(1, 2),
        steps,
        steps % length,
        torch.cat([B, C], dim=2).permute(1, 0, 3, 2),
        channels_last(delta),
        u.new_empty(groups, 0, channels),
        A.unflatten(0, (groups, channels)).mT,
        D.view(groups, channels),
        delta_softplus,
        planes=1,
    )
    y = y.view(batch, groups, length, channels).mT
    return y.flatten(1, 2).contiguous()


def _fake(x, *_):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _op in (_es2d_scan, _ss2d_scan, _selective_scan):
    _op.register_fake(_fake)


def scan_numba(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Selective scan of sequences; takes checked arguments in fp32.

    Raises:
        ImportError: If numba is not installed.
    """
    return _selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)


def es2d_scan_numba(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    geometry: AtrousGroups,
) -> Tensor:
    """Compute :func:`es2d_scan` of arguments in fp32.

    Raises:
        ValueError: If the arguments do not fit the geometry.
        ImportError: If numba is not installed.
    """
    return _es2d_scan(
        x,
        x_proj_weight,
        dt_projs_weight,
        dt_projs_bias,
        A_logs,
        Ds,
        geometry.step,
    )


def ss2d_scan_numba(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    geometry: CrossDirections,
) -> Tensor:
    """Compute :func:`ss2d_scan` of arguments in fp32.

    Raises:
        ValueError: If the arguments do not fit the geometry.
        ImportError: If numba is not installed.
    """
    codes = [DIRECTIONS.index(name) for name in geometry.directions]
    return _ss2d_scan(
        x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds, codes
    )
