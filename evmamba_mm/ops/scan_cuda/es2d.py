"""ES2D's projection and scan as one step of the graph.

Both give a gradient to the map. As one step the second adds to the first
where it is written, instead of torch in a pass of its own.

Shape letters: B batch, H W map, D inner channels, K parameter sets, N states,
R dt rank.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..fused.group_linear import group_linear, group_linear_backward
from ..fused.prepare import RowLayout
from ..fused.shortcut import watched
from .compiler import on_device
from .host import as_parameter, run_backward, run_forward
from .op import scan2d_cuda
from .variant import proj_columns


def kernel_rows(x_proj_weight: Tensor, states: int) -> Tensor:
    """Rows of dt, B and C in the kernel's order: B, C, dt, and padding.

    Args:
        x_proj_weight: (K, R + 2N, D).
        states: N.
    """
    rows = x_proj_weight.shape[1]
    rank = rows - 2 * states
    padding = proj_columns(states, rank) - rows
    if padding <= rows:
        # What the padding computes is never read.
        unread = x_proj_weight[:, :padding].detach()
    else:
        unread = x_proj_weight.new_zeros(
            x_proj_weight.shape[0], padding, x_proj_weight.shape[2]
        )
    parts = (x_proj_weight[:, rank:], x_proj_weight[:, :rank], unread)
    return torch.cat(parts, dim=1)


def scan_row_layout(shape: tuple[int, int, int], states: int) -> RowLayout:
    """What :func:`kernel_rows` does, for weights made ready together.

    Args:
        shape: Of x_proj_weight, (K, R + 2N, D).
        states: N.
    """
    sets, rows, channels = shape
    rank, wide = rows - 2 * states, 2 * states
    padded = proj_columns(states, rank)
    blocks = []
    for k in range(sets):
        first, target = k * rows, k * padded
        blocks.append((first + rank, target, wide))
        blocks.append((first, target + wide, rank))
    return RowLayout((sets, padded, channels), tuple(blocks))


def rows_to_read(
    rows: Tensor | None, u: Tensor, x_proj_weight: Tensor, states: int
) -> Tensor:
    """Ready rows where they serve, else those of the parameter itself.

    Args:
        rows: :func:`kernel_rows` of ``x_proj_weight``, or None.
        u: What they are multiplied with.
        x_proj_weight: (K, R + 2N, D).
        states: N.

    Raises:
        ValueError: If the ready rows have another shape.
    """
    # Gradients go to the parameter.
    if rows is None or rows.dtype != u.dtype or torch.is_grad_enabled():
        return kernel_rows(x_proj_weight, states)
    sets, count, channels = x_proj_weight.shape
    shape = (sets, proj_columns(states, count - 2 * states), channels)
    if rows.shape != shape:
        raise ValueError(
            f'rows must have shape {shape} for x_proj_weight of shape '
            f'{tuple(x_proj_weight.shape)}, got {tuple(rows.shape)}'
        )
    return rows


class _ProjectAndScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, u, x_proj_weight, dt_weight, dt_bias, A_logs, Ds, step_size
    ):
        weight = kernel_rows(x_proj_weight, A_logs.shape[1])
        proj = group_linear(u, weight, step_size)
        parameters = (dt_weight, dt_bias, A_logs, Ds)
        with on_device(u.device):
            y, saved = run_forward(
                u, proj, *parameters, step_size, False, True
            )
        ctx.step_size = step_size
        ctx.save_for_backward(u, proj, *parameters, saved, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *tensors, weight = ctx.saved_tensors
        u, rank, states = tensors[0], tensors[2].shape[2], tensors[4].shape[1]
        with on_device(u.device):
            du, dproj, *others = run_backward(
                dy.contiguous(), *tensors, ctx.step_size, False
            )
        du, drows = group_linear_backward(
            dproj, u, weight, ctx.step_size, du_init=du
        )
        wide = 2 * states
        parts = (drows[:, wide : wide + rank], drows[:, :wide])
        return du, torch.cat(parts, dim=1), *others, None


def es2d_cuda(
    u: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step_size: int,
    rows: Tensor | None = None,
) -> Tensor:
    """Project a CUDA map to dt, B and C and scan it, group by group.

    Args:
        u: Map (B, H, W, D) in fp32, fp16 or bf16.
        x_proj_weight: (K, R + 2N, D).
        dt_weight: (K, D, R).
        dt_bias: (K, D).
        A_logs: (K*D, N).
        Ds: (K*D,).
        step_size: Distance between two cells of a group.
        rows: See :func:`rows_to_read`.

    Returns:
        Map (B, H, W, D) in the dtype of ``u``.
    """
    if watched():
        rows = kernel_rows(x_proj_weight, A_logs.shape[1])
        proj = group_linear(u, rows, step_size)
        return scan2d_cuda(
            u, proj, dt_weight, dt_bias, A_logs, Ds, step_size, cross=False
        )
    parameters = [as_parameter(x) for x in (dt_weight, dt_bias, A_logs, Ds)]
    leaves = (u, x_proj_weight, *parameters)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
    u = u.contiguous()
    if save:
        return _ProjectAndScan.apply(u, x_proj_weight, *parameters, step_size)
    rows = rows_to_read(rows, u, x_proj_weight, A_logs.shape[1])
    proj = group_linear(u, rows, step_size)
    with on_device(u.device):
        return run_forward(u, proj, *parameters, step_size, False, False)[0]
