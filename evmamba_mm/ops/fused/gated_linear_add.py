"""Linear map of a gated map, added to a residual map.

Shape letters: B batch, H W map, D channels, C outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import autocast_dtype, choose_fused
from .shortcut import lazy_kernels, watched

_kernels = lazy_kernels('gated_linear_add_triton')


def _twin(
    residual: Tensor,
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        gate = logits.to(compute).sigmoid()[:, None, None]
        gated = (x.to(compute) * gate).to(dtype)
        bias = None if bias is None else bias.to(dtype)
        return residual + F.linear(gated, weight.to(dtype), bias)


def _check(
    residual: Tensor,
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> None:
    if x.dim() != 4:
        raise ValueError(
            f'x must be a map of shape (B, H, W, D), got {tuple(x.shape)}'
        )
    batch, height, width, channels = x.shape
    outputs = len(weight)
    for name, tensor, shape in (
        ('residual', residual, (batch, height, width, outputs)),
        ('logits', logits, (batch, channels)),
        ('weight', weight, (outputs, channels)),
        ('bias', bias, (outputs,)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f'{name} must have shape {shape} for x of shape '
                f'{tuple(x.shape)} and {outputs} outputs, got '
                f'{tuple(tensor.shape)}'
            )


def gated_linear_add(
    residual: Tensor,
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Add ``linear(x * sigmoid(logits))`` to a residual map.

    The kernel is for inference; where gradients are on, torch computes the
    parts, and so it does for what watches the operations.

    Args:
        residual: Map of shape (B, H, W, C).
        x: Map of shape (B, H, W, D).
        logits: Gate of each channel before its sigmoid, (B, D).
        weight: Of the linear map, (C, D).
        bias: Of the linear map, (C,) or None.
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Map of the shape of ``residual``. The product is in the autocast
        dtype if autocast is on, else in the dtype of ``x``, and the sum in
        the wider one of that and the dtype of ``residual``.

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve ``x``.
        ImportError: If the chosen backend is not installed.
    """
    _check(residual, x, logits, weight, bias)
    dtype = autocast_dtype(x)
    wide = residual if residual.dtype == torch.float64 else x
    kernels = choose_fused(wide, backend) == 'triton'
    if not kernels or torch.is_grad_enabled() or watched():
        return _twin(residual, x, logits, weight, bias, dtype)
    return _kernels().forward(residual, x, logits, weight, bias, dtype)
