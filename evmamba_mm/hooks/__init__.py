from .atomic_checkpoint import AtomicCheckpointHook
from .exact_resume import ExactResumeHook
from .graph_hook import CUDAGraphHook
from .runtime_info import DeferredRuntimeInfoHook
from .signal_hook import SignalHook

__all__ = [
    'AtomicCheckpointHook',
    'CUDAGraphHook',
    'DeferredRuntimeInfoHook',
    'ExactResumeHook',
    'SignalHook',
]
