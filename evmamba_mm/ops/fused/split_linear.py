"""Two linear maps of the same tokens.

Shape letters: C channels, D outputs of each half.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import autocast_dtype, choose_fused
from .shortcut import watched


class _SplitLinear(torch.autograd.Function):
    """The halves, with one gradient of the tokens written once."""

    @staticmethod
    def forward(ctx, x, weight, dtype):
        x, narrow = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, narrow)
        ctx.weight_dtype = weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            return tuple(F.linear(x, w) for w in narrow.chunk(2))

    @staticmethod
    @once_differentiable
    def backward(ctx, dleft, dright):
        x, weight = ctx.saved_tensors
        left, right = weight.chunk(2)
        dleft, dright = dleft.flatten(0, -2), dright.flatten(0, -2)
        dx = (dleft @ left).addmm_(dright, right)
        tokens = x.flatten(0, -2)
        dweight = torch.cat([dleft.T @ tokens, dright.T @ tokens])
        return dx.view_as(x), dweight.to(ctx.weight_dtype), None


def split_linear(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the upper and the lower half of a weight.

    Unlike the halves of one product, two are contiguous, and their gradients
    need not be copied into each other. Without gradients the fused kernels
    read the halves of one as they lie, and it is sooner started.

    Args:
        x: Tokens, (..., C).
        weight: (2D, C).

    Returns:
        Two tensors (..., D), in the autocast dtype if autocast is on.
    """
    seen, gradients = watched(), torch.is_grad_enabled()
    if not gradients and not seen and choose_fused(x, 'auto') == 'triton':
        return F.linear(x, weight).chunk(2, dim=-1)
    dtype = autocast_dtype(x)
    plain = not x.is_cuda or not gradients or seen
    # The gradient of x must have its dtype, so a cast is left to autograd.
    if plain or x.dtype != dtype:
        left, right = weight.chunk(2)
        return F.linear(x, left), F.linear(x, right)
    return _SplitLinear.apply(x, weight, dtype)
