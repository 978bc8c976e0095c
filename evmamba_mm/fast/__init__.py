"""The fast path: fused GPU kernels that compute whole blocks.

The layers do not depend on it. A block is the reference of its kernels, which
run only blocks that they compute exactly; all other blocks run their layers.
"""

from .run import blocks_to_run, check_fused, run_block
from .standard import difference

__all__ = ['blocks_to_run', 'check_fused', 'difference', 'run_block']
