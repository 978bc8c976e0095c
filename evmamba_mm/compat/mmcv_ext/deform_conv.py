import torch
from torch import Tensor

from .kernels import full_precision, torchvision_ops


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fills `output` of a deformable convolution without a mask."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW)
    groups = (group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, geometry, groups))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fills `gradInput` and `gradOffset`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW)
    groups = (group, deformable_group)
    grads = _backward(
        gradOutput, input, weight, offset, None, None, geometry, groups
    )
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds `scale` times the gradient to `gradWeight`."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW)
    groups = (group, deformable_group)
    # The gradient of the weight does not depend on the weight.
    grads = _backward(
        gradOutput, input, gradWeight, offset, None, None, geometry, groups
    )
    gradWeight.add_(grads[1].to(gradWeight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fills `output` of a deformable convolution with a mask."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    groups = (group, deformable_group)
    bias = bias if with_bias else None
    output.copy_(_forward(input, weight, offset, mask, bias, geometry, groups))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fills the five gradients, that of the bias only if there is one."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    groups = (group, deformable_group)
    bias = bias if with_bias else None
    grads = _backward(
        grad_output, input, weight, offset, mask, bias, geometry, groups
    )
    buffers = [grad_input, grad_weight, grad_offset, grad_mask]
    if with_bias:
        buffers.append(grad_bias)
    for buffer, grad in zip(buffers, grads, strict=False):
        buffer.copy_(grad)


def _forward(input, weight, offset, mask, bias, geometry, groups) -> Tensor:
    tensors = _tensors(input, weight, offset, mask, bias)
    use_mask = mask is not None
    return torchvision_ops().deform_conv2d(
        *tensors, *geometry, *groups, use_mask
    )


def _backward(grad, input, weight, offset, mask, bias, geometry, groups):
    """Gradients of input, weight, offset, mask and bias."""
    tensors = _tensors(input, weight, offset, mask, bias)
    use_mask = mask is not None
    grads = torchvision_ops()._deform_conv2d_backward(
        full_precision(grad), *tensors, *geometry, *groups, use_mask
    )
    # On -1, where zero offsets put the taps over a padding of 1, torchvision
    # has the derivative on the right and mmcv none. Elsewhere they agree.
    positions = _positions(tensors[2], weight.shape[2:], geometry)
    grads[2].masked_fill_(positions <= -1, 0)
    return grads


def _positions(offset, kernel, geometry) -> Tensor:
    """The y and x that the taps sample, in the layout of `offset`.

    Its channels are (deformable groups, kH, kW, y and x).
    """
    # (kH, oH) and (kW, oW)
    rows, cols = (
        torch.arange(taps, device=offset.device)[:, None] * dilation
        + torch.arange(size, device=offset.device) * stride
        - pad
        for taps, size, stride, pad, dilation in zip(
            kernel,
            offset.shape[2:],
            geometry[:2],
            geometry[2:4],
            geometry[4:],
            strict=True,
        )
    )
    axes = torch.broadcast_tensors(rows[:, None, :, None], cols[:, None])
    grid = torch.stack(axes, 2).flatten(0, 2)
    return (offset.unflatten(1, (-1, len(grid))) + grid).flatten(1, 2)


def _tensors(input, weight, offset, mask, bias) -> list[Tensor]:
    """The tensor arguments of torchvision's op, which has no None."""
    if mask is None:
        mask = input.new_zeros(len(input), 1)
    if bias is None:
        bias = input.new_zeros(len(weight))
    tensors = (input, weight, offset, mask, bias)
    return [full_precision(tensor) for tensor in tensors]
