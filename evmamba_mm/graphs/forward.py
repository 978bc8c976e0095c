"""The forward of a module that has graphs."""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .capture import autocast_dtype, is_recorded
from .checks import check_arguments, check_hooks, check_training
from .inference import InferenceGraph
from .training import TrainingGraph

_logger = logging.getLogger('evmamba_mm')


def graph_training(
    module: nn.Module, image: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Replay a module's forward and backward as CUDA graphs in training.

    Training calls that match the capture replay it; all others run eagerly. A
    call matches if gradients are enabled, the image has the same shape, dtype
    and device and needs no gradient, the autocast dtype is the same, the same
    parameters need gradients, the same submodules are in training mode, and
    none has a hook. The activations of a replay last until its backward,
    which may run once; a second call before that runs eagerly. Capturing
    another shape or dtype adds a graph, capturing the same one replaces it.

    Replacing or moving a parameter, a buffer or a submodule drops the graph.
    Loading weights and optimiser steps take effect. Values that Python reads
    in the forward, such as a BatchNorm's momentum or a dropout rate, stay as
    captured. The capture does not change buffers such as BatchNorm's
    statistics. A copy or a pickle of the module has no graphs.

    Args:
        module: Maps one tensor to tensors, such as a backbone. It is changed
            in place.
        image: Example on the GPU, (B, C, H, W); its contents do not matter.
        dtype: Autocast dtype of the training, None without autocast.

    Raises:
        ValueError: If the image is not on a GPU, the module not in training,
            or a part of it cannot be captured; see :func:`check_training`.
    """
    check_arguments(module, image, dtype)
    if not module.training:
        raise ValueError(
            'module must be in training mode; call module.train() first'
        )
    check_training(module)
    _add_graph(TrainingGraph, module, image, dtype)


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
    check_arguments(module, image, dtype)
    if module.training:
        raise ValueError(
            'module must be in evaluation mode; call module.eval() first'
        )
    check_hooks(module)
    _add_graph(InferenceGraph, module, image, dtype)


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


def _key(image: Tensor, grads: bool, dtype: torch.dtype | None) -> tuple:
    return image.shape, image.dtype, image.device, grads, dtype


def _add_graph(
    kind: type[InferenceGraph] | type[TrainingGraph],
    module: nn.Module,
    image: Tensor,
    dtype: torch.dtype | None,
) -> None:
    forward = module.__dict__.get('forward')
    if not isinstance(forward, _GraphedForward):
        forward = _GraphedForward(module)
    key = _key(image, kind.grads, dtype)
    forward.graphs.pop(key, None)
    with torch.cuda.device(image.device):
        forward.graphs[key] = kind(module, forward.eager, image, dtype)
    module.forward = forward


class _GraphedForward:
    """Stands in for a module's forward, and picks the graph of a call."""

    def __init__(self, module: nn.Module) -> None:
        self.eager = module.forward
        self.eager_is_own = 'forward' in module.__dict__
        self.graphs: dict[tuple, InferenceGraph | TrainingGraph] = {}
        self._told: set[tuple] = set()

    def __call__(self, image: Tensor):
        if (
            isinstance(image, Tensor)
            and not image.requires_grad
            and not is_recorded()
        ):
            key = _key(image, torch.is_grad_enabled(), autocast_dtype())
            graph = self.graphs.get(key)
            if graph is not None and self._fits(graph, key):
                return graph.replay(image)
        return self.eager(image)

    def _fits(self, graph: InferenceGraph | TrainingGraph, key: tuple) -> bool:
        if graph.state.has_moved():
            del self.graphs[key]
            self._tell(
                key,
                'is dropped: a parameter, a buffer or a submodule was moved '
                'or replaced after the capture',
            )
            return False
        if graph.state.is_set_otherwise():
            self._tell(
                key,
                'is not replayed: hooks, training mode or the parameters with '
                'gradients differ from the capture',
            )
            return False
        if graph.waits():
            self._tell(
                key,
                'is not replayed for a second forward before the backward',
            )
            return False
        return True

    def _tell(self, key: tuple, what: str) -> None:
        if (key, what) not in self._told:
            self._told.add((key, what))
            _logger.warning(
                'the CUDA graph for images of %s %s', tuple(key[0]), what
            )

    def __deepcopy__(self, memo: dict) -> Callable:
        # A method that is copied belongs to the copied module.
        return copy.deepcopy(self.eager, memo)

    def __reduce__(self) -> tuple:
        return self.eager.__reduce__()
