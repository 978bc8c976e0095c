"""The forward of a module that has graphs."""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .call import Call, Inputs, call_of, current_call, tensors_of
from .capture import is_recorded
from .checks import check_arguments, check_hooks, check_training
from .inference import InferenceGraph
from .training import TrainingGraph, Turn

_logger = logging.getLogger('evmamba_mm')


def graph_training(
    module: nn.Module, inputs: Inputs, dtype: torch.dtype | None = None
) -> None:
    """Replay a module's forward and backward as CUDA graphs in training.

    Training calls that match the capture replay it; all others run eagerly. A
    call matches if gradients are enabled, the input has the same shape, dtype,
    device and need of a gradient, the autocast dtype is the same, the same
    parameters need gradients, the same submodules are in training mode, and
    none has a hook. The activations of a replay last until its backward,
    which may run once; a second call before that runs eagerly. Capturing
    another shape or dtype adds a graph, capturing the same one replaces it.
    The graphs of a module share the memory of their activations.

    Replacing or moving a parameter, a buffer or a submodule drops the graph.
    Loading weights and optimiser steps take effect. Values that Python reads
    in the forward, such as a BatchNorm's momentum or a dropout rate, stay as
    captured. The capture does not change buffers such as BatchNorm's
    statistics. A copy or a pickle of the module has no graphs.

    Args:
        module: Maps one tensor, or a sequence of tensors, to tensors, as a
            backbone or a neck does. It is changed in place.
        inputs: Example on the GPU, such as images (B, C, H, W) or the feature
            maps of a backbone. Its contents do not matter. Tensors that
            require a gradient get one in the backward.
        dtype: Autocast dtype of the training, None without autocast.

    Raises:
        ValueError: If the input is not on a GPU, the module not in training,
            or a part of it cannot be captured; see :func:`check_training`.
    """
    check_arguments(module, dtype, 'inputs', inputs)
    if not module.training:
        raise ValueError(
            'module must be in training mode; call module.train() first'
        )
    check_training(module)
    forward = _forward_of(module)
    call = call_of(inputs, True, dtype)
    forward.graphs.pop(call, None)
    with torch.cuda.device(tensors_of(inputs)[0].device):
        forward.graphs[call] = TrainingGraph(
            *(module, forward.eager, inputs, dtype),
            *(forward.turn, forward.pool()),
        )
    module.forward = forward


def graph_inference(
    module: nn.Module, image: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Replay a module's forward as a CUDA graph in inference.

    Evaluation calls under ``torch.no_grad()`` that match the capture replay
    it; all others run eagerly. :func:`graph_training` says what must match.
    The next replay overwrites the result: copy it to keep it.

    Args:
        module: Maps one tensor to tensors, such as the result of
            :func:`evmamba_mm.deploy.fuse`. It is changed in place.
        image: Example on the GPU, (B, C, H, W); its contents do not matter.
        dtype: Autocast dtype of the calls, None without autocast.

    Raises:
        ValueError: If the image is not on a GPU, the module in training, or a
            submodule has a hook.
    """
    check_arguments(module, dtype, 'image', image)
    if module.training:
        raise ValueError(
            'module must be in evaluation mode; call module.eval() first'
        )
    check_hooks(module)
    forward = _forward_of(module)
    with torch.cuda.device(image.device):
        graph = InferenceGraph(module, forward.eager, image, dtype)
    forward.graphs[call_of(image.detach(), False, dtype)] = graph
    module.forward = forward


def remove_graphs(module: nn.Module) -> None:
    """Restore a module's own forward, and free its graphs' memory.

    Args:
        module: As given to :func:`graph_training` or
            :func:`graph_inference`; one without graphs stays as it is.
    """
    forward = module.__dict__.get('forward')
    if not isinstance(forward, _GraphedForward):
        return
    forward.graphs.clear()
    del module.forward
    if forward.eager_is_own:
        module.forward = forward.eager


def _forward_of(module: nn.Module) -> '_GraphedForward':
    """The forward with the graphs of a module, which has none at first."""
    forward = module.__dict__.get('forward')
    if isinstance(forward, _GraphedForward):
        return forward
    return _GraphedForward(module)


class _GraphedForward:
    """Stands in for a module's forward, and picks the graph of a call."""

    def __init__(self, module: nn.Module) -> None:
        self.eager = module.forward
        self.eager_is_own = 'forward' in module.__dict__
        self.graphs: dict[Call, InferenceGraph | TrainingGraph] = {}
        self.turn = Turn()
        self._told: set[tuple] = set()

    def __call__(self, inputs: Inputs):
        if not is_recorded():
            call = current_call(inputs)
            graph = self.graphs.get(call)
            if graph is not None and self._fits(graph, call):
                return graph.replay(inputs)
        return self.eager(inputs)

    def pool(self) -> tuple | None:
        """Memory of the graphs of the training, None if there are none."""
        # That of a graph which is gone cannot be taken again.
        for graph in self.graphs.values():
            if isinstance(graph, TrainingGraph):
                return graph.pool()
        return None

    def _fits(self, graph: InferenceGraph | TrainingGraph, call: Call) -> bool:
        if graph.state.has_moved():
            del self.graphs[call]
            self._tell(
                call,
                'is dropped: a parameter, a buffer or a submodule was moved '
                'or replaced after the capture',
            )
            return False
        if graph.state.is_set_otherwise():
            self._tell(
                call,
                'is not replayed: hooks, training mode or the parameters with '
                'gradients differ from the capture',
            )
            return False
        if isinstance(graph, TrainingGraph) and self.turn.waits():
            self._tell(
                call,
                'is not replayed for a second forward before the backward',
            )
            return False
        return True

    def _tell(self, call: Call, what: str) -> None:
        if (call, what) not in self._told:
            self._told.add((call, what))
            _logger.warning(
                'the CUDA graph for inputs of %s %s', call.shape, what
            )

    def __deepcopy__(self, memo: dict) -> Callable:
        # A method that is copied belongs to the copied module.
        return copy.deepcopy(self.eager, memo)

    def __reduce__(self) -> tuple:
        return self.eager.__reduce__()
