"""EfficientVMamba for mmpretrain, mmdet and mmseg."""

from . import compat, hub, log
from .version import __version__

log.forward_to_mmengine()
compat.apply()
hub.register()

from .analysis import register_flop_handles  # noqa: E402
from .backbones import ARCHS, EfficientVMamba  # noqa: E402
from .data import (  # noqa: E402
    BatchRandAugment,
    BatchRandomErasing,
    BatchRandomFlip,
    BatchRandomResizedCrop,
    CachedDataset,
    LoadResizedCrop,
)
from .data_preprocessor import BatchDataPreprocessor  # noqa: E402
from .detection import BatchCanvasPad  # noqa: E402
from .hooks import (  # noqa: E402
    AtomicCheckpointHook,
    CUDAGraphHook,
    DataWaitHook,
    DeferredRuntimeInfoHook,
    ExactResumeHook,
    SignalHook,
)
from .optim import (  # noqa: E402
    FlatDistributedDataParallel,
    ForeachExponentialMovingAverage,
    GroupedOptimWrapperConstructor,
    LayerDecayOptimWrapperConstructor,
)

register_flop_handles()

__all__ = [
    'ARCHS',
    'AtomicCheckpointHook',
    'BatchCanvasPad',
    'BatchDataPreprocessor',
    'BatchRandAugment',
    'BatchRandomErasing',
    'BatchRandomFlip',
    'BatchRandomResizedCrop',
    'CUDAGraphHook',
    'CachedDataset',
    'DataWaitHook',
    'DeferredRuntimeInfoHook',
    'EfficientVMamba',
    'ExactResumeHook',
    'FlatDistributedDataParallel',
    'ForeachExponentialMovingAverage',
    'GroupedOptimWrapperConstructor',
    'LoadResizedCrop',
    'SignalHook',
    'LayerDecayOptimWrapperConstructor',
    '__version__',
]
