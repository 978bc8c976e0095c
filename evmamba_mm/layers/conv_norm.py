"""Convolution, BatchNorm and activation of a channels-last map (B, H, W, C).

The modules hold the parameters; here is how they are run together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import (
    autocast_dtype,
    batch_norm_act,
    depthwise_conv3x3,
    fold_batch_norm,
    watched,
)
from .prepared import can_fold, ready_or_own, ready_weight

_ACTIVATIONS = {'none': None, 'relu': F.relu, 'gelu': F.gelu}


def _activate(x: Tensor, activation: str) -> Tensor:
    function = _ACTIVATIONS[activation]
    return x if function is None else function(x)


def _folded(
    x: Tensor, conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Weight and bias with the norm in them; None where it has to stay.

    It stays where a gradient asks for it, and whoever watches the operations
    is shown it.
    """
    if not can_fold(norm) or norm.training:
        return None
    ready = ready_weight(conv, norm)
    if ready is not None:
        return ready
    if not x.is_cuda or torch.is_grad_enabled() or watched():
        return None
    return fold_batch_norm(
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        dtype,
    )


def norm_act(norm: nn.Module, x: Tensor, activation: str) -> Tensor:
    """Apply a BatchNorm and an activation in one step where possible.

    Args:
        norm: ``nn.BatchNorm2d``; another norm, such as ``nn.SyncBatchNorm``
            or what stands for a folded one, is called as it is.
        x: Map (B, H, W, C).
        activation: 'none', 'relu' or 'gelu'.
    """
    if type(norm) is not nn.BatchNorm2d or not norm.affine:
        y = norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _activate(y, activation)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    return batch_norm_act(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.training or norm.running_mean is None,
        momentum,
        norm.eps,
        activation,
    )


def pointwise_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """1x1 convolution of a map (B, H, W, C)."""
    weight, bias = ready_or_own(conv)
    return F.linear(x, weight.flatten(1), bias)


def pointwise_norm_act(
    x: Tensor, conv: nn.Conv2d, norm: nn.Module, activation: str = 'none'
) -> Tensor:
    """1x1 convolution, norm and activation of a map (B, H, W, C)."""
    folded = _folded(x, conv, norm, autocast_dtype(x))
    if folded is not None:
        weight, bias = folded
        y = F.linear(x, weight.flatten(1), bias)
        return F.relu_(y) if activation == 'relu' else _activate(y, activation)
    y = pointwise_conv(x, conv)
    return norm_act(norm, y, activation)


def depthwise_norm_act(
    x: Tensor, conv: nn.Conv2d, norm: nn.Module, activation: str
) -> Tensor:
    """Depthwise 3x3 convolution, norm and activation of a map (B, H, W, C)."""
    if isinstance(norm, nn.Identity):
        return depthwise_conv3x3(x, conv.weight, conv.bias, activation)
    folded = _folded(x, conv, norm, torch.float32)
    if folded is not None:
        return depthwise_conv3x3(x, *folded, activation)
    y = depthwise_conv3x3(x, conv.weight, conv.bias)
    return norm_act(norm, y, activation)
