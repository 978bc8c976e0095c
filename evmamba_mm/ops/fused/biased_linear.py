"""A linear map with a bias, whose gradient is a pass over the map.

Shape letters: B batch, H W map, C channels, D outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import autocast_dtype, choose_fused
from .shortcut import watched
from .sums import column_sums


class _BiasedLinear(torch.autograd.Function):
    """The map, with the gradient of the bias in fp32 by the sums' kernel."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, narrow)
        ctx.dtypes = weight.dtype, bias.dtype
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, narrow, bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, weight = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        for_x, for_weight, for_bias = ctx.needs_input_grad
        dx = dweight = dbias = None
        rows = dout.flatten(0, -2)
        if for_x:
            dx = (rows @ weight).view(*dout.shape[:-1], weight.shape[1])
        if for_weight:
            dweight = (rows.T @ x.flatten(0, -2)).to(weight_dtype)
        if for_bias:
            dbias = column_sums(rows).to(bias_dtype)
        return dx, dweight, dbias


def biased_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear map to each pixel.

    It is torch's, but where a kernel can sum up the gradient of the bias.

    Args:
        x: Map, (B, H, W, C).
        weight: (D, C).
        bias: (D,) or None.

    Returns:
        Map (B, H, W, D), in the autocast dtype if autocast is on.
    """
    summed = bias is not None and bias.requires_grad
    if not summed or not torch.is_grad_enabled() or watched():
        return F.linear(x, weight, bias)
    # The gradient of x must have its dtype, so a cast is left to autograd.
    if x.dtype != autocast_dtype(x) or choose_fused(x, 'auto') == 'torch':
        return F.linear(x, weight, bias)
    return _BiasedLinear.apply(x, weight, bias)
