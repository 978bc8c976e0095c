"""Tensor operations of EfficientVMamba, without parameters."""

from .scan import (
    BACKENDS,
    FOUR_DIRECTIONS,
    AtrousGroups,
    CrossDirections,
    atrous_merge,
    atrous_parameter_sets,
    atrous_scan,
    check_backend,
    cross_merge,
    cross_scan,
    es2d_scan,
    selective_scan,
    ss2d_scan,
)
from .tracing import has_transforms, is_traced

__all__ = [
    'BACKENDS',
    'FOUR_DIRECTIONS',
    'AtrousGroups',
    'CrossDirections',
    'atrous_merge',
    'atrous_parameter_sets',
    'atrous_scan',
    'check_backend',
    'cross_merge',
    'cross_scan',
    'es2d_scan',
    'has_transforms',
    'is_traced',
    'selective_scan',
    'ss2d_scan',
]
