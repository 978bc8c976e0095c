"""The projection of each position to B, C and dt by its group's weight.

The Triton kernels run where Triton is installed and the result fits into
their registers; pure torch does the rest.

Shape letters: B batch, H W feature map, D inner channels, K parameter sets, N
states, R dt rank, P columns of a projected position.
"""

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from ...triton import triton_installed
from ..geometry import AtrousGroups
from .variant import proj_columns


def _kernels(u: Tensor, columns: int) -> ModuleType | None:
    if not (u.is_cuda and triton_installed()):
        return None
    from ...triton import group_linear

    return group_linear if columns <= group_linear.MAX_OUTPUTS else None


def _columns(x_proj_weight: Tensor) -> int:
    # B, C and dt are padded together.
    return proj_columns(0, x_proj_weight.shape[1])


def _cells(step: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Parameter set and positions of each group."""
    geometry = AtrousGroups(step)
    for g, k in enumerate(geometry.parameter_sets):
        i, j = g % step, g // step
        yield k, (slice(None), slice(i, None, step), slice(j, None, step))


def _reordered(x_proj_weight: Tensor, rank: int, dtype: torch.dtype) -> Tensor:
    """Rows of dt, B and C as rows of B, C and dt, (K, R + 2N, D)."""
    return x_proj_weight.to(dtype).roll(-rank, 1)


def project_forward(
    u: Tensor, x_proj_weight: Tensor, rank: int, step: int
) -> Tensor:
    """Project each position by the weight of its group.

    Args:
        u: Feature map (B, H, W, D).
        x_proj_weight: Rows of dt, B and C, (K, R + 2N, D).
        rank: R.
        step: Distance between two positions of a group.

    Returns:
        Feature map (B, H, W, P) in u's dtype: B, C, dt, and zeros.
    """
    columns, used = _columns(x_proj_weight), x_proj_weight.shape[1]
    kernels = _kernels(u, columns)
    if kernels is not None:
        return kernels.project_forward(u, x_proj_weight, rank, step)
    weight = _reordered(x_proj_weight, rank, u.dtype)
    proj = u.new_zeros(*u.shape[:3], columns)
    with torch.autocast(u.device.type, enabled=False):
        for k, cells in _cells(step):
            proj[cells][..., :used] = u[cells] @ weight[k].mT
    return proj


def project_backward(
    dproj: Tensor,
    u: Tensor,
    x_proj_weight: Tensor,
    rank: int,
    step: int,
    du_init: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`project_forward`.

    Args:
        dproj: Gradient of the result, (B, H, W, P).
        u: As given to the forward.
        x_proj_weight: As given to the forward.
        rank: R.
        step: As given to the forward.
        du_init: What the gradient of u is added to, (B, H, W, D).

    Returns:
        Gradients of u and of x_proj_weight, each in its tensor's dtype.
    """
    kernels = _kernels(u, dproj.shape[3])
    if kernels is not None:
        return kernels.project_backward(
            dproj, u, x_proj_weight, rank, step, du_init
        )
    weight = _reordered(x_proj_weight, rank, u.dtype)
    dproj = dproj[..., : x_proj_weight.shape[1]]
    du = du_init.clone(memory_format=torch.contiguous_format)
    wide = torch.promote_types(u.dtype, torch.float32)
    dweight = torch.zeros_like(weight, dtype=wide)
    with torch.autocast(u.device.type, enabled=False):
        for k, cells in _cells(step):
            here, tokens = dproj[cells].flatten(0, 2), u[cells].flatten(0, 2)
            du[cells] += (here @ weight[k]).view_as(du[cells])
            dweight[k] += here.mT @ tokens
    return du, dweight.roll(rank, 1).to(x_proj_weight.dtype)
