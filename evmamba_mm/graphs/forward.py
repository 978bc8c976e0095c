"""The forward of a module that has graphs."""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .capture import autocast_dtype, is_recorded
from .checks import check_hooks, check_image, check_training
from .inference import InferenceGraph
from .training import TrainingGraph

_logger = logging.getLogger('evmamba_mm')


def graph_training(
    module: nn.Module, image: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Replay a module's forward and backward as CUDA graphs in training.

    From then on a training call like the captured one replays it; every other
    call runs as before. Like it is a call with gradients on, an image of this
    shape, dtype and device that has no gradient itself, and this autocast
    dtype, while the same parameters have gradients, the same submodules are
    in training mode, and none has a hook. The activations of a replay last
    until its backward, of which it has one; a call before that runs without
    a graph. A second capture, of another shape or dtype, is added to the
    first; one of the same takes its place.

    When a parameter, a buffer or a submodule is replaced or moved, the graph
    is given up. Loading weights into it, and optimiser's steps, are followed.
    Numbers that Python reads while it runs the module, such as a BatchNorm's
    momentum or a rate of dropout, stay what they were at the capture. The
    capture leaves buffers, such as BatchNorm's statistics, as they were. A
    copy or a pickle of the module has no graphs.

    Args:
        module: Takes one tensor and gives tensors, such as a backbone. It is
            changed in place.
        image: Example on the GPU, (B, C, H, W); its contents do not matter.
        dtype: Autocast dtype of the training, None without autocast.

    Raises:
        ValueError: If the image is not on a GPU, the module not in training,
            or a part of it cannot be captured; see :func:`check_training`.
    """
    check_image(image)
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

    From then on an evaluation call like the captured one, under
    ``torch.no_grad()``, replays it; every other call runs as before.
    :func:`graph_training` tells which call is like it, and what is followed.
    The result of a replay is overwritten by the next: copy what has to last.

    Args:
        module: Takes one tensor and gives tensors, such as what
            :func:`evmamba_mm.deploy.fuse` returns. It is changed in place.
        image: Example on the GPU, (B, C, H, W); its contents do not matter.
        dtype: Autocast dtype of the calls, None without autocast.

    Raises:
        ValueError: If the image is not on a GPU, the module in training, or a
            submodule has a hook.
    """
    check_image(image)
    if module.training:
        raise ValueError(
            'module must be in evaluation mode; call module.eval() first'
        )
    check_hooks(module)
    _add_graph(InferenceGraph, module, image, dtype)


def remove_graphs(module: nn.Module) -> None:
    """Give a module its plain forward back, and free its graphs' memory.

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
                'is given up: a parameter, a buffer or a submodule was moved '
                'or replaced after the capture',
            )
            return False
        if graph.state.is_set_otherwise():
            self._tell(
                key,
                'is not replayed: hooks, training mode or the parameters with '
                'gradients are not those of the capture',
            )
            return False
        if graph.waits():
            self._tell(
                key,
                'is not replayed for a call before the backward of the last',
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
