"""Ops that read and write each map once, in Triton beside plain torch."""

from .batch_norm import batch_norm_act
from .biased_linear import biased_linear
from .choice import FUSED_BACKENDS, autocast_dtype, choose_fused
from .depthwise import depthwise_conv3x3
from .fold import fold_batch_norm
from .gated_linear import norm_gate_linear
from .gated_linear_add import gated_linear_add
from .gated_residual import gated_residual
from .group_linear import group_linear
from .merge_norm import merge_layer_norm, merge_neighbours
from .norm import layer_norm, layer_norm_branches, layer_norm_gate
from .patch_norm import patch_layer_norm
from .pooled_gates import pooled_gates
from .pooled_norm import pooled_layer_norm, pooled_layer_norms
from .prepare import (
    BatchNormTensors,
    PreparedWeights,
    RowLayout,
    WeightJob,
    can_prepare,
)
from .scale_add import scale_add
from .shortcut import watched
from .split_linear import split_linear
from .squeeze_excite import squeeze_excite, squeeze_excite_gates

__all__ = [
    'BatchNormTensors',
    'FUSED_BACKENDS',
    'PreparedWeights',
    'RowLayout',
    'WeightJob',
    'autocast_dtype',
    'batch_norm_act',
    'biased_linear',
    'can_prepare',
    'choose_fused',
    'depthwise_conv3x3',
    'fold_batch_norm',
    'gated_linear_add',
    'gated_residual',
    'group_linear',
    'layer_norm',
    'layer_norm_branches',
    'layer_norm_gate',
    'merge_layer_norm',
    'merge_neighbours',
    'norm_gate_linear',
    'patch_layer_norm',
    'pooled_gates',
    'pooled_layer_norm',
    'pooled_layer_norms',
    'scale_add',
    'split_linear',
    'squeeze_excite',
    'squeeze_excite_gates',
    'watched',
]
