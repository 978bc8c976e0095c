"""EfficientVMamba for mmpretrain, mmdet and mmseg."""

from . import compat, log
from .version import __version__

log.forward_to_mmengine()
compat.apply()

from . import detection  # noqa: E402, F401  registers parts of mmdet's
from .analysis import register_flop_handles  # noqa: E402
from .backbones import ARCHS, EfficientVMamba  # noqa: E402
from .canvases import BatchCanvasPad  # noqa: E402
from .data_preprocessor import BatchDataPreprocessor  # noqa: E402
from .hooks import CUDAGraphHook, DeferredRuntimeInfoHook  # noqa: E402
from .optim import (  # noqa: E402
    ForeachExponentialMovingAverage,
    GroupedOptimWrapperConstructor,
)

register_flop_handles()

__all__ = [
    'ARCHS',
    'BatchCanvasPad',
    'BatchDataPreprocessor',
    'CUDAGraphHook',
    'DeferredRuntimeInfoHook',
    'EfficientVMamba',
    'ForeachExponentialMovingAverage',
    'GroupedOptimWrapperConstructor',
    '__version__',
]
