"""A captured forward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .capture import autocast, capture, warm_up
from .state import ModuleState


class InferenceGraph:
    """Forward of a module for images of one shape and dtype.

    Args:
        module: Module to capture.
        eager: Its own forward.
        image: Example.
        dtype: Autocast dtype, None without autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        eager: Callable,
        image: Tensor,
        dtype: torch.dtype | None,
    ) -> None:
        self.state = ModuleState(module)
        self._image = image.detach().clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), autocast(dtype):
            stream = warm_up(lambda: eager(self._image), image.device)
            with capture(self._graph, stream):
                self._output = eager(self._image)

    def replay(self, image: Tensor):
        """Result of the module for an image, until the next replay."""
        self._image.copy_(image)
        self._graph.replay()
        return self._output
