"""Fixes for the toolboxes on current torch, one problem per file.

`apply` makes the fixes of `import evmamba_mm`: it registers import hooks and
an allow-list, imports no toolbox, and changes nothing that works. A tool
calls `init_cpu_dist` itself.
"""

from . import (
    checkpoint_files,
    compiled_versions,
    ema_weights,
    latest_checkpoint,
    loader_workers,
    mmcv_ops,
    mmpretrain_multimodal,
    mmseg_flops,
    pkg_resources_lookup,
    pvt_outputs,
    resumed_config,
    safe_loading,
    scheduler_state,
)
from .after_import import after_import
from .cpu_distributed import init_cpu_dist

__all__ = ['after_import', 'apply', 'init_cpu_dist']


def apply() -> None:
    """Makes the fixes; a second call changes nothing.

    Call it before mmcv.ops, mmdet, mmseg or mmpretrain is imported.
    """
    mmcv_ops.apply()
    mmpretrain_multimodal.apply()
    mmseg_flops.apply()
    pkg_resources_lookup.apply()
    pvt_outputs.apply()
    safe_loading.apply()
    resumed_config.apply()
    scheduler_state.apply()
    checkpoint_files.apply()
    latest_checkpoint.apply()
    loader_workers.apply()
    ema_weights.apply()
    compiled_versions.apply()
