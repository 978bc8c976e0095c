"""Convolution, BatchNorm and activation of a channels-last map (B, H, W, C).

The modules hold the parameters; here is how they are run together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import (
    autocast_dtype,
    batch_norm_act,
    biased_linear,
    depthwise_conv3x3,
    fold_batch_norm,
    watched,
)
from .plain import is_plain
from .prepared import can_fold, ready_or_own, ready_weight

_ACTIVATIONS = {
    'none': None,
    'relu': F.relu,
    'gelu': F.gelu,
    'silu': F.silu,
}


def _activate(x: Tensor, activation: str) -> Tensor:
    function = _ACTIVATIONS[activation]
    return x if function is None else function(x)


def _called(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer of torch's makes of a map (B, H, W, C)."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def folded(
    x: Tensor, conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a convolution with the norm in them.

    Args:
        x: Input of the convolution.
        conv: The convolution.
        norm: What follows it.
        dtype: Dtype of the results.

    Returns:
        None where the norm has to stay: where a gradient asks for it, and
        where someone watches the operations, who is shown it; and where the
        convolution has to be called.
    """
    if torch.is_grad_enabled() or not is_plain(conv, nn.Conv2d):
        return None
    if isinstance(norm, nn.Identity):
        return ready_or_own(conv)
    if norm.training or not can_fold(norm):
        return None
    ready = ready_weight(conv, norm)
    if ready is not None:
        return ready
    if not x.is_cuda or watched():
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
    if not is_plain(norm, nn.BatchNorm2d):
        return _activate(_called(norm, x), activation)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    batches = norm.num_batches_tracked if norm.training else None
    if batches is not None and norm.momentum is None:
        batches.add_(1)
        momentum, batches = 1.0 / float(batches), None
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
        batches=batches,
    )


def pointwise_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """1x1 convolution of a map (B, H, W, C)."""
    if not is_plain(conv, nn.Conv2d):
        return _called(conv, x)
    weight, bias = ready_or_own(conv)
    return biased_linear(x, weight.flatten(1), bias)


def pointwise_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """1x1 convolution and norm of a map (B, H, W, C)."""
    ready = folded(x, conv, norm, autocast_dtype(x))
    if ready is not None:
        weight, bias = ready
        return F.linear(x, weight.flatten(1), bias)
    return norm_act(norm, pointwise_conv(x, conv), 'none')


def depthwise_conv(
    x: Tensor,
    conv: nn.Conv2d,
    activation: str = 'none',
    input_activation: str = 'none',
) -> Tensor:
    """Depthwise 3x3 convolution and activation of a map (B, H, W, C)."""
    if not is_plain(conv, nn.Conv2d):
        y = _called(conv, _activate(x, input_activation))
        return _activate(y, activation)
    return depthwise_conv3x3(
        x, conv.weight, conv.bias, activation, input_activation
    )


def depthwise_norm_act(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.Module,
    activation: str,
    input_activation: str = 'none',
) -> Tensor:
    """Depthwise 3x3 convolution, norm and activation of a map (B, H, W, C)."""
    if isinstance(norm, nn.Identity):
        return depthwise_conv(x, conv, activation, input_activation)
    ready = folded(x, conv, norm, torch.float32)
    if ready is not None:
        return depthwise_conv3x3(x, *ready, activation, input_activation)
    y = depthwise_conv(x, conv, 'none', input_activation)
    return norm_act(norm, y, activation)


def pointwise_depthwise(
    x: Tensor, pointwise: nn.Sequential, depthwise: nn.Sequential
) -> Tensor:
    """1x1 and depthwise 3x3 convolution of a map (B, H, W, C).

    Args:
        x: The map.
        pointwise: Convolution, norm and ReLU.
        depthwise: Convolution, norm and ReLU.
    """
    conv, norm, _ = pointwise
    ready = folded(x, conv, norm, autocast_dtype(x))
    if ready is None:
        y, left = norm_act(norm, pointwise_conv(x, conv), 'relu'), 'none'
    else:
        # Without a norm, the ReLU would be a pass over the map of its own.
        y, left = F.linear(x, ready[0].flatten(1), ready[1]), 'relu'
    conv, norm, _ = depthwise
    return depthwise_norm_act(y, conv, norm, 'relu', left)
