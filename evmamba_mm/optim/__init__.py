from .constructor import GroupedOptimWrapperConstructor
from .ema import ForeachExponentialMovingAverage
from .flat_parallel import FlatDistributedDataParallel
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = [
    'FlatDistributedDataParallel',
    'ForeachExponentialMovingAverage',
    'GroupedOptimWrapperConstructor',
    'LayerDecayOptimWrapperConstructor',
]
