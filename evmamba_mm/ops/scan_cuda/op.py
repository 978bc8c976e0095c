"""The fused 2-D scan as an operation that torch knows.

Shape letters: B batch, H W map, D inner channels, K parameter sets, N states,
R dt rank, P columns of a projected row.
"""

import torch
from torch import Tensor

from ..fused.shortcut import short_call, short_differentiable
from .compiler import on_device
from .host import as_parameter, run_backward, run_forward
from .variant import TILE


def _forward(
    u: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step_size: int,
    cross: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    with on_device(u.device):
        y, saved = run_forward(
            u, proj, dt_weight, dt_bias, A_logs, Ds, step_size, cross, save
        )
    return y, A_logs.new_empty(0) if saved is None else saved


_scan = torch.library.custom_op(
    'evmamba_mm::scan2d_cuda', _forward, mutates_args=(), device_types='cuda'
)


@_scan.register_fake
def _scan_fake(
    u, proj, dt_weight, dt_bias, A_logs, Ds, step_size, cross, save
):
    batch, height, width, channels = u.shape
    if not save:
        return torch.empty_like(u), A_logs.new_empty(0)
    groups = 4 if cross else step_size**2
    rows = (height + step_size - 1) // step_size
    columns = (width + step_size - 1) // step_size
    tiles = (rows * columns + TILE - 1) // TILE
    size = (batch * groups, tiles, channels, A_logs.shape[1])
    return torch.empty_like(u), A_logs.new_empty(size)


def _gradients(
    dy: Tensor,
    u: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    saved: Tensor,
    step_size: int,
    cross: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with on_device(u.device):
        return run_backward(
            dy.contiguous(),
            u,
            proj,
            dt_weight,
            dt_bias,
            A_logs,
            Ds,
            saved,
            step_size,
            cross,
        )


_scan_backward = torch.library.custom_op(
    'evmamba_mm::scan2d_cuda_backward',
    _gradients,
    mutates_args=(),
    device_types='cuda',
)
_run_backward = short_call(_scan_backward, _gradients)


@_scan_backward.register_fake
def _scan_backward_fake(
    dy, u, proj, dt_weight, dt_bias, A_logs, Ds, saved, step_size, cross
):
    inputs = (u, proj, dt_weight, dt_bias, A_logs, Ds)
    return tuple(torch.empty_like(x) for x in inputs)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.step_size, ctx.cross, ctx.save = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, dy, _):
    if not ctx.save:
        raise RuntimeError(
            'the fused scan was run without keeping what its backward needs'
        )
    gradients = _run_backward(dy, *ctx.saved_tensors, ctx.step_size, ctx.cross)
    return *gradients, None, None, None


_run = short_differentiable(_scan, _forward, _setup_context, _backward)


def scan2d_cuda(
    u: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step_size: int,
    cross: bool,
) -> Tensor:
    """ES2D's or SS2D's scan of a channels-last CUDA map in one kernel.

    Steps are read where they lie on the map and results written back there;
    groups, transposed copies, padding, step sizes and states are never laid
    out in memory. All arithmetic is fp32. Gradients are recomputed from the
    states at every 16th step.

    Args:
        u: Map (B, H, W, D) in fp32, fp16 or bf16.
        proj: B, C and dt of each cell, in this order and padded to P columns
            (:func:`proj_columns`): (B, H, W, P), or (B, H, W, 4*P) with one
            block of columns a direction where ``cross``. The padding is not
            read, its gradient is zero.
        dt_weight: (K, D, R).
        dt_bias: (K, D).
        A_logs: (K*D, N), at most 128 states.
        Ds: (K*D,).
        step_size: Distance between two cells of a group; 1 where ``cross``.
        cross: SS2D's four directions, summed, instead of ES2D's groups.

    Returns:
        Map (B, H, W, D) in the dtype of ``u``.
    """
    parameters = [as_parameter(x) for x in (dt_weight, dt_bias, A_logs, Ds)]
    differentiable = (u, proj, *parameters)
    save = torch.is_grad_enabled() and any(
        x.requires_grad for x in differentiable
    )
    return _run(
        u.contiguous(),
        proj.to(u.dtype).contiguous(),
        *parameters,
        step_size,
        cross,
        save,
    )[0]
