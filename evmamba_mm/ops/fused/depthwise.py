"""Depthwise 3x3 convolution and activation of a channels-last map.

Shape letters: B batch, H W map, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import autocast_dtype, choose_fused
from .shortcut import lazy_kernels, short_call, short_differentiable

ACTIVATIONS = ('none', 'relu', 'gelu', 'silu')
INPUT_ACTIVATIONS = ('none', 'relu')


_kernels = lazy_kernels('depthwise_triton')


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    input_activation: str,
    dtype: torch.dtype,
) -> Tensor:
    return _kernels().depthwise_forward(
        x, weight, bias, activation, input_activation, dtype
    )


_conv = torch.library.custom_op(
    'evmamba_mm::depthwise_conv3x3', _forward, mutates_args=()
)


@_conv.register_fake
def _conv_fake(x, weight, bias, activation, input_activation, dtype):
    return x.new_empty(x.shape, dtype=dtype)


def _gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and those of weight and bias in one tensor.

    The bias's is there even if the bias is not.
    """
    return _kernels().depthwise_backward(dy, x, weight, bias, activation)


_conv_backward = torch.library.custom_op(
    'evmamba_mm::depthwise_conv3x3_backward', _gradients, mutates_args=()
)
_run_backward = short_call(_conv_backward, _gradients)


@_conv_backward.register_fake
def _conv_backward_fake(dy, x, weight, bias, activation):
    sums = x.new_empty(10 * x.shape[3], dtype=torch.float32)
    return x.new_empty(x.shape), sums


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, ctx.activation, ctx.input_activation, _ = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    with_relu = ctx.input_activation == 'relu'
    x = x.relu() if with_relu else x
    dx, sums = _run_backward(dy, x, weight, bias, ctx.activation)
    if with_relu:
        dx = torch.ops.aten.threshold_backward(dx, x, 0)
    dweight, dbias = sums.split(weight.numel())
    dbias = None if bias is None else dbias.to(bias.dtype)
    dweight = dweight.view(weight.shape).to(weight.dtype)
    return dx, dweight, dbias, None, None, None


_run = short_differentiable(_conv, _forward, _setup_context, _backward)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    input_activation: str,
) -> None:
    shape = x.shape
    if len(shape) != 4 or shape[1] < 1 or shape[2] < 1:
        raise ValueError(
            'x must be a map of shape (B, H, W, C) with H and W of at least '
            f'1, got shape {tuple(shape)}'
        )
    channels = shape[3]
    if weight.shape != (channels, 1, 3, 3):
        raise ValueError(
            f'weight must have shape ({channels}, 1, 3, 3) for x of shape '
            f'{tuple(x.shape)}, got {tuple(weight.shape)}'
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(
            f'bias must have shape ({channels},) for x of shape '
            f'{tuple(x.shape)}, got {tuple(bias.shape)}'
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f'activation must be one of {", ".join(ACTIVATIONS)}, got '
            f'{activation!r}'
        )
    if input_activation not in INPUT_ACTIVATIONS:
        raise ValueError(
            'input_activation must be one of '
            f'{", ".join(INPUT_ACTIVATIONS)}, got {input_activation!r}'
        )


def _depthwise_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    y = F.conv2d(
        x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3]
    ).permute(0, 2, 3, 1)
    if activation == 'relu':
        return F.relu(y)
    if activation == 'gelu':
        return F.gelu(y)
    if activation == 'silu':
        return F.silu(y)
    return y


def depthwise_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = 'none',
    input_activation: str = 'none',
    backend: str = 'auto',
) -> Tensor:
    """Convolve each channel by 3x3 at stride 1, then activate.

    The border is zero. The kernel keeps nothing but its input for the
    backward and computes in fp32.

    Args:
        x: Map of shape (B, H, W, C), channels innermost in memory; another
            layout is copied.
        weight: As of ``nn.Conv2d`` with C groups, (C, 1, 3, 3).
        bias: (C,) or None.
        activation: One of :data:`ACTIVATIONS`; 'gelu' is the exact one.
        input_activation: What is applied to ``x`` before, one of
            :data:`INPUT_ACTIVATIONS`.
        backend: See :func:`evmamba_mm.ops.fused.choice.choose_fused`.

    Returns:
        Map of shape (B, H, W, C) in the autocast dtype, or else x's.

    Raises:
        ValueError: If a shape or an activation is not legal, or as
            ``choose_fused``.
        ImportError: As ``choose_fused``.
    """
    _check(x, weight, bias, activation, input_activation)
    dtype = autocast_dtype(x)
    if choose_fused(x, backend) == 'torch':
        x = F.relu(x) if input_activation == 'relu' else x
        return _depthwise_torch(x, weight, bias, activation).to(dtype)
    return _run(x, weight, bias, activation, input_activation, dtype)
