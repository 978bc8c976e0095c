"""The selective scan: its geometries, its backends and their choice."""

from .backend import BACKENDS, check_backend
from .geometry import (
    FOUR_DIRECTIONS,
    AtrousGroups,
    CrossDirections,
    atrous_merge,
    atrous_parameter_sets,
    atrous_scan,
    cross_merge,
    cross_scan,
)
from .map_scan import es2d_scan, ss2d_scan
from .selective_scan import selective_scan

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
    'selective_scan',
    'ss2d_scan',
]
