"""Layer norm of each cell's 2x2 neighbours, without a copy of the map.

Shape letters: B batch, H W map, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import autocast_dtype, choose_fused
from .norm import layer_norm
from .shortcut import lazy_kernels, watched

_kernels = lazy_kernels('merge_norm_triton')


def merge_neighbours(x: Tensor) -> Tensor:
    """The 2x2 neighbours of each cell, as :func:`merge_layer_norm` takes them.

    Args:
        x: Map (B, H, W, C).

    Returns:
        Map (B, ceil(H / 2), ceil(W / 2), 4C).
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    # One copy here and one in the backward; slices of every second cell
    # would each have a gradient of the whole map.
    cells = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return cells.permute(0, 1, 3, 4, 2, 5).flatten(3)


class _MergeLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.bias_dtype = eps, bias.dtype
        return _kernels().merge_forward(x, weight, bias, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, weight = ctx.saved_tensors
        dx, (dweight, dbias) = _kernels().merge_backward(
            dout, x, weight, ctx.eps
        )
        return (
            dx,
            dweight.to(weight.dtype),
            dbias.to(ctx.bias_dtype),
            None,
            None,
        )


def merge_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    backend: str = 'auto',
) -> Tensor:
    """Concatenate 2x2 neighbours and normalise them together.

    The neighbours stand in the order (0, 0), (1, 0), (0, 1), (1, 1) as (row,
    column). Odd sizes are padded with zeros on the right and at the bottom,
    which count in the norm.

    Args:
        x: Map (B, H, W, C), H and W at least 1.
        weight: Scale of each channel, (4C,).
        bias: Shift of each channel, (4C,).
        eps: Added to the variance.
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Map (B, ceil(H / 2), ceil(W / 2), 4C), in the autocast dtype if
        autocast is on, else in that of ``x``.

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve ``x``.
        ImportError: If the chosen backend is not installed.

    Source: Swin Transformer (arXiv:2103.14030), with its layer norm
    (arXiv:1607.06450).
    """
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(
            'x must be a map of shape (B, H, W, C) with H, W and C of at '
            f'least 1, got shape {tuple(x.shape)}'
        )
    wide = (4 * x.shape[3],)
    if weight.shape != wide or bias.shape != wide:
        raise ValueError(
            f'weight and bias must have shape {wide} for x of shape '
            f'{tuple(x.shape)}, got {tuple(weight.shape)} and '
            f'{tuple(bias.shape)}'
        )
    if choose_fused(x, backend) == 'torch' or watched():
        return layer_norm(merge_neighbours(x), weight, bias, eps, backend)
    differentiable = torch.is_grad_enabled()
    run = _MergeLayerNorm.apply if differentiable else _kernels().merge_forward
    return run(x, weight, bias, eps, autocast_dtype(x))
