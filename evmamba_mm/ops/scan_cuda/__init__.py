"""The fused scan of 2-D maps, in CUDA C++ compiled at run time."""

from .compiler import INSTALL_LINE, compiler_installed
from .es2d import es2d_cuda, kernel_rows, rows_to_read, scan_row_layout
from .op import scan2d_cuda
from .variant import MAX_STATES, device_served, dtype_served, proj_columns

__all__ = [
    'INSTALL_LINE',
    'MAX_STATES',
    'compiler_installed',
    'device_served',
    'dtype_served',
    'es2d_cuda',
    'kernel_rows',
    'proj_columns',
    'rows_to_read',
    'scan2d_cuda',
    'scan_row_layout',
]
