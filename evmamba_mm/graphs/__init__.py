"""Forward and backward as CUDA graphs.

A GPU runs a small network faster than Python launches it. A CUDA graph
launches all of it at once, but does not see changes since its capture. So
every call first compares the module with the captured state, and runs eagerly
if they differ.
"""

from .call import Call, Inputs, copy_of, current_call, tensors_of
from .capture import autocast_dtype
from .checks import check_training
from .forward import graph_inference, graph_training, remove_graphs

__all__ = [
    'Call',
    'Inputs',
    'autocast_dtype',
    'check_training',
    'copy_of',
    'current_call',
    'graph_inference',
    'graph_training',
    'remove_graphs',
    'tensors_of',
]
