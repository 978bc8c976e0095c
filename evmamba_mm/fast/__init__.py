"""One fast path beside the layers: whole blocks by fused GPU kernels.

The layers know nothing of it. A block is its kernels' reference: they run
where a block is exactly what they compute, and the block itself runs
everywhere else.
"""

from .run import blocks_to_run, check_fused, run_block
from .standard import difference

__all__ = ['blocks_to_run', 'check_fused', 'difference', 'run_block']
