from .graph_hook import CUDAGraphHook
from .runtime_info import DeferredRuntimeInfoHook

__all__ = ['CUDAGraphHook', 'DeferredRuntimeInfoHook']
