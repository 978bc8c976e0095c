"""The depthwise 3x3 convolution as operators that torch.compile sees."""

import torch
from torch import Tensor

from .depthwise import (
    conv_backward,
    depthwise_conv3x3_inference,
    split_sums,
)


@torch.library.custom_op('evmamba_mm::depthwise_conv3x3', mutates_args=())
def _op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    input_activation: str,
) -> Tensor:
    return depthwise_conv3x3_inference(
        x, weight, bias, activation, x.dtype, None, None, input_activation
    )


@_op.register_fake
def _(x, weight, bias, activation, input_activation):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    'evmamba_mm::depthwise_conv3x3_backward', mutates_args=()
)
def _backward_op(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:
    return conv_backward(dy, x, weight, bias, activation)


@_backward_op.register_fake
def _(dy, x, weight, bias, activation):
    sums = x.new_empty(10 * x.shape[3], dtype=torch.float32)
    return x.new_empty(x.shape), sums


def _op_setup_context(ctx, inputs, output) -> None:
    x, weight, bias, ctx.activation, ctx.input_activation = inputs
    ctx.save_for_backward(x, weight, bias)


def _op_backward(ctx, dy):
    if ctx.input_activation != 'none':
        raise RuntimeError('the input is only activated without gradients')
    x, weight, bias = ctx.saved_tensors
    dx, sums = _backward_op(dy, x, weight, bias, ctx.activation)
    return dx, *split_sums(sums, weight, bias), None, None


_op.register_autograd(_op_backward, setup_context=_op_setup_context)

# For torch.compile: (x, weight, bias, activation, input_activation) to y in
# the dtype of x. The input's activation, 'none' or 'relu', has no gradient.
depthwise_conv3x3_op = torch.ops.evmamba_mm.depthwise_conv3x3
