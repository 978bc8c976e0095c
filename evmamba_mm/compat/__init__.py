"""What the toolboxes break on today's torch, mended one thing a file.

`apply` makes every mend that `import evmamba_mm` can make by itself: it
registers hooks and an allow-list, imports no toolbox, and changes nothing
where nothing is broken. `init_cpu_dist` is a mend that a tool asks for.
"""

from . import mmcv_ops, mmpretrain_multimodal, safe_loading
from .cpu_distributed import init_cpu_dist

__all__ = ['apply', 'init_cpu_dist']


def apply() -> None:
    """Makes the mends; a second call changes nothing.

    Call it before mmcv.ops, mmdet, mmseg or mmpretrain is imported.
    """
    mmcv_ops.apply()
    mmpretrain_multimodal.apply()
    safe_loading.apply()
