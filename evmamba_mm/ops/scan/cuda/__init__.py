"""The fused scan of feature maps, in CUDA C++ compiled at run time."""

from .compiler import INSTALL_LINE, compiler_installed
from .host import geometry_served
from .op import es2d_scan_cuda, ss2d_scan_cuda
from .variant import (
    MANY_STATES,
    MAX_RANK,
    MAX_RANK_OF_MANY,
    MAX_STATES,
    device_served,
    dtype_served,
    numbers_served,
    proj_columns,
)

__all__ = [
    'INSTALL_LINE',
    'MANY_STATES',
    'MAX_RANK',
    'MAX_RANK_OF_MANY',
    'MAX_STATES',
    'compiler_installed',
    'device_served',
    'dtype_served',
    'es2d_scan_cuda',
    'geometry_served',
    'numbers_served',
    'proj_columns',
    'ss2d_scan_cuda',
]
