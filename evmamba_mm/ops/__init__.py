"""Tensor operations of EfficientVMamba, without parameters."""

from .atrous import atrous_merge, atrous_parameter_sets, atrous_scan
from .backend import BACKENDS, check_backend
from .cross import cross_merge, cross_scan
from .fused import (
    BatchNormTensors,
    PreparedWeights,
    WeightJob,
    autocast_dtype,
    batch_norm_act,
    can_prepare,
    choose_fused,
    depthwise_conv3x3,
    fold_batch_norm,
    gated_linear_add,
    layer_norm,
    layer_norm_gate,
    merge_layer_norm,
    norm_gate_linear,
    patch_layer_norm,
    pooled_layer_norms,
    scale_add,
    split_linear,
    squeeze_excite,
    squeeze_excite_gates,
    watched,
)
from .scan2d import es2d_scan, ss2d_scan
from .selective_scan import selective_scan

__all__ = [
    'BACKENDS',
    'BatchNormTensors',
    'PreparedWeights',
    'WeightJob',
    'atrous_merge',
    'atrous_parameter_sets',
    'atrous_scan',
    'autocast_dtype',
    'batch_norm_act',
    'can_prepare',
    'check_backend',
    'choose_fused',
    'cross_merge',
    'cross_scan',
    'depthwise_conv3x3',
    'fold_batch_norm',
    'es2d_scan',
    'gated_linear_add',
    'layer_norm',
    'layer_norm_gate',
    'merge_layer_norm',
    'norm_gate_linear',
    'patch_layer_norm',
    'pooled_layer_norms',
    'scale_add',
    'split_linear',
    'squeeze_excite',
    'squeeze_excite_gates',
    'selective_scan',
    'ss2d_scan',
    'watched',
]
