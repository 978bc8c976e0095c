from .constructor import GroupedOptimWrapperConstructor
from .ema import ForeachExponentialMovingAverage

__all__ = [
    'ForeachExponentialMovingAverage',
    'GroupedOptimWrapperConstructor',
]
