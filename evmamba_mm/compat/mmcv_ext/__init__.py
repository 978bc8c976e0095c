"""The functions of `mmcv._ext` that torchvision or torch can replace.

Each has the arguments of the compiled function, with the same names: mmcv
passes outputs as buffers to fill.
"""

from . import (
    box_overlaps,
    deform_attn,
    deform_conv,
    focal_loss,
    info,
    masked_conv,
    nms,
    psa_mask,
    roi_align,
    roi_pool,
)
from .unserved import unserved_op

__all__ = ['SERVED', 'unserved_op']

SERVED = {
    function.__name__: function
    for function in (
        box_overlaps.bbox_overlaps,
        deform_attn.ms_deform_attn_forward,
        deform_attn.ms_deform_attn_backward,
        deform_conv.deform_conv_forward,
        deform_conv.deform_conv_backward_input,
        deform_conv.deform_conv_backward_parameters,
        deform_conv.modulated_deform_conv_forward,
        deform_conv.modulated_deform_conv_backward,
        focal_loss.sigmoid_focal_loss_forward,
        focal_loss.sigmoid_focal_loss_backward,
        focal_loss.softmax_focal_loss_forward,
        focal_loss.softmax_focal_loss_backward,
        info.get_compiler_version,
        info.get_compiling_cuda_version,
        masked_conv.masked_im2col_forward,
        masked_conv.masked_col2im_forward,
        nms.nms,
        nms.softnms,
        nms.nms_match,
        psa_mask.psamask_forward,
        psa_mask.psamask_backward,
        roi_align.roi_align_forward,
        roi_align.roi_align_backward,
        roi_pool.roi_pool_forward,
        roi_pool.roi_pool_backward,
    )
}
