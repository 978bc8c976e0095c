"""Layer norm, gate and linear map, keeping only what goes in.

Shape letters: D channels of the tokens, C outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import norm
from .choice import autocast_dtype, choose_fused
from .shortcut import watched


class _NormGateLinear(torch.autograd.Function):
    """The normed and gated tokens are computed again in the backward.

    They are as large as each of the two inputs, which are kept anyway, and
    one pass makes them.
    """

    @staticmethod
    def forward(ctx, y, gate, weight, bias, eps, linear, dtype):
        narrow = linear.to(dtype)
        ctx.save_for_backward(y, gate, weight, bias, narrow)
        ctx.eps, ctx.dtype, ctx.linear_dtype = eps, dtype, linear.dtype
        z = norm.norm_forward(y, gate, weight, bias, eps, dtype)
        with torch.autocast(y.device.type, enabled=False):
            return F.linear(z, narrow)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, gate, weight, bias, linear = ctx.saved_tensors
        z = norm.norm_forward(y, gate, weight, bias, ctx.eps, ctx.dtype)
        dlinear = dout.flatten(0, -2).T @ z.flatten(0, -2)
        del z
        dy, dgate, (dweight, dbias) = norm.norm_backward(
            dout @ linear, y, gate, weight, bias, ctx.eps
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
) -> Tensor:
    """Linear map of ``layer_norm(y) * silu(gate)``, without a bias.

    Args:
        y: Tokens, (..., D).
        gate: Gate before its activation, (..., D).
        weight: Scale of the norm, (D,).
        bias: Shift of the norm, (D,).
        eps: Added to the variance.
        linear: Weight of the linear map, (C, D).

    Returns:
        Tensor of shape (..., C), in the autocast dtype if autocast is on.

    Raises:
        ValueError: If a shape does not fit.
    """
    norm.check_gated_norm(y, gate, weight, bias)
    dtype = autocast_dtype(y)
    kernels = choose_fused(y, 'auto') == 'triton'
    if not kernels or not torch.is_grad_enabled() or watched():
        z = norm.layer_norm_gate(y, gate, weight, bias, eps)
        return F.linear(z, linear)
    return _NormGateLinear.apply(y, gate, weight, bias, eps, linear, dtype)
