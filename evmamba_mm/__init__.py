"""EfficientVMamba for mmpretrain, mmdet and mmseg."""

from . import compat, log
from .version import __version__

log.forward_to_mmengine()
compat.apply()

from .analysis import register_flop_handles  # noqa: E402
from .backbones import ARCHS, EfficientVMamba  # noqa: E402
from .hooks import CUDAGraphHook  # noqa: E402

register_flop_handles()

__all__ = ['ARCHS', 'CUDAGraphHook', 'EfficientVMamba', '__version__']
