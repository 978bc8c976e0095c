from torch import Tensor

from .kernels import full_precision, torchvision_ops
from .roi_align_max import max_backward, max_forward

MAX = 0


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `output` (R, C, h, w) from `input` (B, C, H, W).

    Where the largest is taken, `argmax_y` and `argmax_x` are its place among
    the points of its bin.
    """
    features = full_precision(input)
    if pool_mode == MAX:
        found = max_forward(
            features,
            rois.to(features.dtype),
            (aligned_height, aligned_width),
            (spatial_scale, sampling_ratio, aligned),
        )
        for buffer, value in zip(
            (output, argmax_y, argmax_x), found, strict=True
        ):
            buffer.copy_(value)
        return
    pooled = torchvision_ops().roi_align(
        features,
        rois.to(features.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills `grad_input`; see `roi_align_forward`."""
    grad = full_precision(grad_output)
    if pool_mode == MAX:
        grad_features = max_backward(
            grad,
            rois.to(grad.dtype),
            argmax_y,
            argmax_x,
            tuple(grad_input.shape),
            (spatial_scale, sampling_ratio, aligned),
        )
        grad_input.copy_(grad_features)
        return
    batch, channels, height, width = grad_input.shape
    grad_features = torchvision_ops()._roi_align_backward(
        grad,
        rois.to(grad.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        batch,
        channels,
        height,
        width,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad_features)
