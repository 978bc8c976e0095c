"""Tensor operations of EfficientVMamba, without parameters."""

from .atrous import atrous_merge, atrous_parameter_sets, atrous_scan
from .backend import BACKENDS, check_backend
from .cross import cross_merge, cross_scan
from .scan2d import es2d_scan, ss2d_scan
from .selective_scan import selective_scan

__all__ = [
    'BACKENDS',
    'atrous_merge',
    'atrous_parameter_sets',
    'atrous_scan',
    'check_backend',
    'cross_merge',
    'cross_scan',
    'es2d_scan',
    'selective_scan',
    'ss2d_scan',
]
