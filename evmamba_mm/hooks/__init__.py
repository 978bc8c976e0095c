from .data_wait import DataWaitHook
from .graph_hook import CUDAGraphHook
from .runtime_info import DeferredRuntimeInfoHook

__all__ = ['CUDAGraphHook', 'DataWaitHook', 'DeferredRuntimeInfoHook']
