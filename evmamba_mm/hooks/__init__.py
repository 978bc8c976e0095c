from .atomic_checkpoint import AtomicCheckpointHook
from .data_wait import DataWaitHook
from .exact_resume import ExactResumeHook
from .graph_hook import CUDAGraphHook
from .runtime_info import DeferredRuntimeInfoHook
from .signal_hook import SignalHook

__all__ = [
    'AtomicCheckpointHook',
    'CUDAGraphHook',
    'DataWaitHook',
    'DeferredRuntimeInfoHook',
    'ExactResumeHook',
    'SignalHook',
]
