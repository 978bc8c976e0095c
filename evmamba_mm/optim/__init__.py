from .constructor import GroupedOptimWrapperConstructor
from .ema import ForeachExponentialMovingAverage
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = [
    'ForeachExponentialMovingAverage',
    'GroupedOptimWrapperConstructor',
    'LayerDecayOptimWrapperConstructor',
]
