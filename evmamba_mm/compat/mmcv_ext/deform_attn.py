"""Attention that samples few points of several feature maps.

Shapes: B batch, S pixels of all levels together, M heads, D channels of a
head, L levels, Q queries, P points.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels import full_precision


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sums of sampled values, (B, Q, M * D).

    `value` is (B, S, M, D), `spatial_shapes` (L, 2) heights and widths,
    `sampling_loc` (B, Q, M, L, P, 2) x and y between 0 and 1, `attn_weight`
    (B, Q, M, L, P).
    """
    levels = _levels(spatial_shapes, level_start_index)
    tensors = map(full_precision, (value, sampling_loc, attn_weight))
    return _attend(levels, *tensors).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fills the gradients of the three floating tensors."""
    levels = _levels(spatial_shapes, level_start_index)
    with torch.enable_grad():
        tensors = [
            full_precision(tensor).detach().requires_grad_()
            for tensor in (value, sampling_loc, attn_weight)
        ]
        output = _attend(levels, *tensors)
        grads = torch.autograd.grad(
            output, tensors, grad_output.to(output.dtype)
        )
    buffers = (grad_value, grad_sampling_loc, grad_attn_weight)
    for buffer, grad in zip(buffers, grads, strict=True):
        buffer.copy_(grad)
    # A sample on -1 or on the size adds 0. There grid_sample may have the
    # derivative of the side towards the image, and mmcv has none.
    sizes = spatial_shapes.flip(1)[:, None]
    positions = full_precision(sampling_loc) * sizes - 0.5
    inside = ((positions > -1) & (positions < sizes)).all(-1, keepdim=True)
    grad_sampling_loc.masked_fill_(~inside, 0)


def _levels(shapes: Tensor, starts: Tensor) -> list[tuple[int, int, int]]:
    """Start, height and width of each level, with one copy to the host."""
    return torch.cat([starts[:, None], shapes], 1).tolist()


def _attend(
    levels: list[tuple[int, int, int]],
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    # (B, S, M, D) -> (B * M, D, S)
    planes = value.permute(0, 2, 3, 1).flatten(0, 1)
    # grid_sample counts from -1 to 1.
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    weights = weights.transpose(1, 2).flatten(0, 1)
    output = planes.new_zeros(batch * heads, channels, queries)
    for level, (start, height, width) in enumerate(levels):
        plane = planes[..., start : start + height * width]
        sampled = F.grid_sample(
            plane.unflatten(-1, (height, width)),
            grids[:, :, level],
            align_corners=False,
        )
        output = output + (sampled * weights[:, None, :, level]).sum(-1)
    return output.view(batch, -1, queries).transpose(1, 2).contiguous()
