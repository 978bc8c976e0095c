from torch import Tensor

from .kernels import full_precision, torchvision_ops
from .unserved import unserved_error

MAX, AVERAGE = 0, 1


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

    Raises:
        NotImplementedError: `pool_mode` is max.
    """
    if pool_mode != AVERAGE:
        raise unserved_error("roi_align with pool_mode='max'")
    features = full_precision(input)
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
    if pool_mode != AVERAGE:
        raise unserved_error("roi_align with pool_mode='max'")
    grad = full_precision(grad_output)
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
