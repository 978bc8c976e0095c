from .graph_hook import CUDAGraphHook

__all__ = ['CUDAGraphHook']
