"""Linear maps of tokens, with passes over the tokens saved in training.

The products are torch's, in the dtype of the tokens. Weights may be in fp32:
autocast casts them where it is on.

Shape letters: C channels, D outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import dense_like, once_differentiable
from .layer_norm import norm_backward, norm_forward
from .sums import channel_sums


class _BiasedLinear(torch.autograd.Function):
    """A product with a bias, ``dbias = sum of dy over the tokens``."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        dx = dweight = dbias = None
        rows = dy.reshape(-1, dy.shape[-1])
        if for_x:
            dx = (rows @ weight).view(*dy.shape[:-1], weight.shape[1])
        if for_weight:
            dweight = rows.T @ x.reshape(-1, x.shape[-1])
        if for_bias:
            dbias = channel_sums(rows).to(dy.dtype)
        return dx, dweight, dbias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear map whose parameters may be in another dtype.

    Args:
        x: Tokens (..., C).
        weight: (D, C).
        bias: (D,) or None. A kernel sums its gradient.

    Returns:
        Tokens (..., D) in x's dtype.
    """
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        return _BiasedLinear.apply(x, weight.to(x.dtype), bias.to(x.dtype))
    if not torch.is_autocast_enabled(x.device.type):
        weight = weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
    return F.linear(x, weight, bias)


class _SplitLinear(torch.autograd.Function):
    """Two products of the same tokens, with one gradient of the tokens.

    ``dx = dleft @ left + dright @ right`` for the halves of the weight.
    """

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return tuple(F.linear(x, half) for half in weight.chunk(2))

    @staticmethod
    @once_differentiable
    def backward(ctx, dleft, dright):
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        dx = dweight = None
        left, right = weight.chunk(2)
        dleft = dleft.reshape(-1, len(left))
        dright = dright.reshape(-1, len(right))
        if for_x:
            dx = (dleft @ left).addmm_(dright, right).view(x.shape)
        if for_weight:
            rows = x.reshape(-1, x.shape[-1])
            dweight = torch.cat([dleft.T @ rows, dright.T @ rows])
        return dx, dweight


def split_linear(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the upper and the lower half of a weight.

    With gradients, two products compute the halves: they are contiguous, and
    their gradients need no copy. Without gradients they are slices of one
    product, which the kernels read in place.

    Args:
        x: Tokens (..., C).
        weight: (2D, C).

    Returns:
        Two tensors (..., D) in x's dtype.
    """
    if torch.is_grad_enabled():
        return _SplitLinear.apply(x, weight.to(x.dtype))
    return linear(x, weight).chunk(2, dim=-1)


class _NormGateLinear(torch.autograd.Function):
    """A product with ``z = layer_norm(y) * silu(gate)``.

    The backward recomputes z instead of storing it: z is as large as each of
    the two inputs, which are stored anyway, and the norm's backward has all
    inputs of z.
    """

    @staticmethod
    def forward(ctx, y, gate, weight, bias, eps, projection):
        ctx.save_for_backward(y, gate, weight, bias, projection)
        ctx.eps = eps
        z = norm_forward(y, gate, weight, bias, eps, projection.dtype)
        return F.linear(z, projection)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, gate, weight, bias, projection = ctx.saved_tensors
        rows = dout.reshape(-1, dout.shape[-1])
        dz = (rows @ projection).view(y.shape)
        z = dense_like(y, projection.dtype)
        dy, dgate, (dweight, dbias) = norm_backward(
            dz, y, gate, weight, bias, ctx.eps, z
        )
        dprojection = rows.T @ z.view(-1, z.shape[-1])
        dweight, dbias = dweight.to(weight.dtype), dbias.to(bias.dtype)
        return dy, dgate, dweight, dbias, None, dprojection


def norm_gate_linear(
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    projection: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Linear map of ``layer_norm(y) * silu(gate)``, without a bias.

    Args:
        y: Tokens (..., D). Without gradients they are overwritten.
        gate: Gate before its activation, (..., D).
        weight: Scale of the norm, (D,).
        bias: Shift of the norm, (D,).
        eps: Added to the variance.
        projection: Weight of the linear map, (C, D).
        dtype: Dtype of the product.

    Returns:
        Tokens (..., C).
    """
    if torch.is_grad_enabled():
        projection = projection.to(dtype)
        return _NormGateLinear.apply(y, gate, weight, bias, eps, projection)
    z = norm_forward(y, gate, weight, bias, eps, dtype, overwrite=True)
    return linear(z, projection)
