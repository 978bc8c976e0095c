"""RoI max pooling with mmcv's bins.

torchvision's roi_pool is another op: it rounds a box to whole pixels before
it is divided into bins, mmcv rounds the bins.
"""

import torch
from torch import Tensor

from .kernels import full_precision


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fills `output` (R, C, h, w) with the largest pixel of each bin.

    `argmax` gets that pixel's index in the flat (H, W) plane, -1 for a bin
    without a pixel, whose output is 0.
    """
    height, width = input.shape[-2:]
    boxes = full_precision(rois)
    image = boxes[:, 0].long().tolist()
    low, high = boxes[:, 1:3], boxes[:, 3:5]
    start, size = low * spatial_scale, (high + 1 - low) * spatial_scale
    rows = _Bins(start[:, 1], size[:, 1], pooled_height, height)
    cols = _Bins(start[:, 0], size[:, 0], pooled_width, width)
    for i, features in enumerate(input[n] for n in image):
        pixel = rows.of_box(i)[:, None, :, None] * width
        pixel = (pixel + cols.of_box(i)[None, :, None, :]).flatten(2)
        largest, place = features.flatten(1)[:, pixel].max(-1)
        taken = pixel.expand(len(features), -1, -1, -1)
        taken = taken.gather(-1, place[..., None]).squeeze(-1)
        empty = rows.empty[i][:, None] | cols.empty[i]
        output[i] = largest.masked_fill(empty, 0)
        argmax[i] = taken.masked_fill(empty, -1)


class _Bins:
    """The pixels of each box's bins along one axis of `limit` pixels.

    `start` and `size` (R,) are the boxes in pixels, each cut in `count` bins.
    """

    def __init__(self, start: Tensor, size: Tensor, count: int, limit: int):
        edge = torch.arange(count + 1, device=start.device)
        edge = edge * (size / count)[:, None] + start[:, None]
        first = edge[:, :-1].floor().clamp(0, limit).long()
        last = edge[:, 1:].ceil().clamp(0, limit).long()
        self.empty = (last <= first) | (size <= 0)[:, None]
        lengths = (last - first).clamp(min=1)
        self.lengths = lengths.amax(-1).tolist()
        step = torch.arange(max(self.lengths, default=1), device=start.device)
        # A bin shorter than the longest repeats its last pixel, which
        # changes no maximum.
        step = torch.minimum(step, lengths[..., None] - 1)
        self.pixels = (first[..., None] + step).clamp(max=limit - 1)

    def of_box(self, index: int) -> Tensor:
        """Pixels of one box, (count, longest of its bins)."""
        return self.pixels[index, :, : self.lengths[index]]


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds each output's gradient to the pixel it was taken from."""
    _, channels, height, width = grad_input.shape
    pooled = argmax >= 0
    image = rois[:, 0].long()[:, None] * channels
    plane = image + torch.arange(channels, device=rois.device)
    plane = plane[..., None, None].expand_as(argmax)
    pixel = plane * (height * width) + argmax
    grad = torch.zeros_like(full_precision(grad_input)).flatten()
    grad.index_add_(0, pixel[pooled], grad_output[pooled].to(grad.dtype))
    grad_input.copy_(grad.view_as(grad_input))
