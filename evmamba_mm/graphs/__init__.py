"""Forward and backward as CUDA graphs.

A small network takes the GPU less time than Python needs to launch it. A CUDA
graph launches all of it at once, but knows nothing of what has changed since
it was captured. So what a graph fixes is compared with what is there before
every replay; where they differ, the call runs as if there were no graph.
"""

from .capture import autocast_dtype
from .checks import check_training
from .forward import graph_inference, graph_training, remove_graphs

__all__ = [
    'autocast_dtype',
    'check_training',
    'graph_inference',
    'graph_training',
    'remove_graphs',
]
