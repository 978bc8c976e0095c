"""Layer norm, gate and linear map, keeping only what goes in.

Shape letters: D channels of the tokens, C outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import norm
from .choice import autocast_dtype, choose_fused
from .shortcut import lazy_kernels, watched

# Rows of more channels would not fit into the registers of a program.
MAX_KERNEL_CHANNELS = 256


_kernels = lazy_kernels('gated_linear_triton')
_backward_kernels = lazy_kernels('gated_linear_backward_triton')


def _fits(weight: Tensor, dtype: torch.dtype) -> bool:
    # In fp32 a product from registers is slower than cuBLAS's from memory.
    return len(weight) <= MAX_KERNEL_CHANNELS and dtype != torch.float32


def _forward(
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    linear: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """By one kernel, or by one and a product, unseen by autograd."""
    if _fits(weight, dtype):
        return _kernels().norm_gate_linear_forward(
            y, gate, weight, bias, eps, linear, dtype
        )
    z = norm.norm_forward(y, gate, weight, bias, eps, dtype)
    with torch.autocast(y.device.type, enabled=False):
        return F.linear(z, linear.to(dtype))


def _backward(
    dout: Tensor,
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    linear: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By one kernel and a product, or by two of each.

    Returns:
        Gradients of y, of the gate, of weight and bias, and of linear.
    """
    rows = dout.reshape(-1, dout.shape[-1])
    if _fits(weight, linear.dtype) and _backward_kernels().serves(
        *linear.shape
    ):
        *gradients, z = _backward_kernels().norm_gate_linear_backward(
            rows, y, gate, weight, bias, eps, linear
        )
        return *gradients, rows.T @ z
    z = norm.norm_forward(y, gate, weight, bias, eps, linear.dtype)
    dlinear = rows.T @ z.reshape(-1, z.shape[-1])
    del z
    dz = dout @ linear
    gradients = norm.norm_backward(dz, y, gate, weight, bias, eps)
    return *gradients, dlinear


class _NormGateLinear(torch.autograd.Function):
    """The normed and gated tokens are computed again in the backward.

    They are as large as each of the two inputs, which are kept anyway, and
    one pass makes them.
    """

    @staticmethod
    def forward(ctx, y, gate, weight, bias, eps, linear, dtype):
        narrow = linear.to(dtype)
        ctx.save_for_backward(y, gate, weight, bias, narrow)
        ctx.eps, ctx.linear_dtype = eps, linear.dtype
        return _forward(y, gate, weight, bias, eps, narrow, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, gate, weight, bias, linear = ctx.saved_tensors
        dy, dgate, (dweight, dbias), dlinear = _backward(
            dout, y, gate, weight, bias, ctx.eps, linear
        )
        return (
            dy,
            dgate,
            dweight.to(weight.dtype),
            dbias.to(bias.dtype),
            None,
            dlinear.to(ctx.linear_dtype),
            None,
        )


def norm_gate_linear(
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    linear: Tensor,
    backend: str = 'auto',
) -> Tensor:
    """Linear map of ``layer_norm(y) * silu(gate)``, without a bias.

    Args:
        y: Tokens, (..., D).
        gate: Gate before its activation, (..., D).
        weight: Scale of the norm, (D,).
        bias: Shift of the norm, (D,).
        eps: Added to the variance.
        linear: Weight of the linear map, (C, D).
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Tensor of shape (..., C), in the autocast dtype if autocast is on.

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve ``y``.
        ImportError: If the chosen backend is not installed.
    """
    norm.check_gated_norm(y, gate, weight, bias)
    if linear.dim() != 2 or linear.shape[1:] != weight.shape:
        raise ValueError(
            f'linear must have shape (C, {len(weight)}) for y of shape '
            f'{tuple(y.shape)}, got {tuple(linear.shape)}'
        )
    dtype = autocast_dtype(y)
    if choose_fused(y, backend) != 'triton' or watched():
        z = norm.layer_norm_gate(y, gate, weight, bias, eps, backend)
        return F.linear(z, linear)
    run = _NormGateLinear.apply if torch.is_grad_enabled() else _forward
    return run(y, gate, weight, bias, eps, linear, dtype)
