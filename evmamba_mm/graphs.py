"""Forward and backward as CUDA graphs.

A small network takes the GPU less time than Python needs to launch it. A CUDA
graph launches all of it at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Calls before a capture, which compile kernels and choose algorithms.
_WARM_UP = 3


def _check_image(image: Tensor) -> None:
    if not image.is_cuda:
        raise ValueError(
            f'image must be on a CUDA device, got {image.device}: there are '
            'no graphs elsewhere'
        )


def graph_training(
    module: nn.Module, image: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Replay a module's forward and backward as CUDA graphs in training.

    From then on a training call with an image of this shape and dtype, while
    gradients are on, replays what was captured; every other call runs as
    before. Buffers, such as BatchNorm's statistics, are left as they were.

    What a graph fixes stays fixed: which parameters have a gradient, and the
    autocast dtype. Freeze and convert before.

    Args:
        module: Takes one tensor and gives tensors, such as a backbone. It is
            changed in place.
        image: Example on the GPU, (B, C, H, W); its contents do not matter.
        dtype: Autocast dtype of the training, None without autocast.

    Raises:
        ValueError: If the image is not on a GPU or the module not in training.
    """
    _check_image(image)
    if not module.training:
        raise ValueError(
            'module must be in training mode; call module.train() first'
        )
    eager = module.forward
    kept = [buffer.clone() for buffer in module.buffers()]
    # A cached cast would be captured once and never follow its parameter.
    with torch.autocast(
        'cuda', dtype=dtype, enabled=dtype is not None, cache_enabled=False
    ):
        torch.cuda.make_graphed_callables(module, (image.detach().clone(),))
    with torch.no_grad():
        for buffer, old in zip(module.buffers(), kept, strict=True):
            buffer.copy_(old)
    module.forward = _chooser(
        module, eager, module.forward, image, training=True
    )


def _chooser(
    module: nn.Module,
    eager: Callable,
    graphed: Callable,
    example: Tensor,
    training: bool,
) -> Callable:
    shape, dtype = example.shape, example.dtype

    def forward(image: Tensor):
        fits = (
            module.training == training
            and torch.is_grad_enabled() == training
            and image.shape == shape
            and image.dtype == dtype
        )
        return graphed(image) if fits else eager(image)

    return forward


def graph_inference(
    module: nn.Module, image: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Replay a module's forward as a CUDA graph in inference.

    From then on an evaluation call with an image of this shape and dtype,
    under ``torch.no_grad()``, replays what was captured; every other call
    runs as before. The result of a replay is overwritten by the next: copy
    what has to last. Weights are read where they were, so that loading others
    into the module is seen; moving the module is not.

    Args:
        module: Takes one tensor and gives tensors, such as what
            :func:`evmamba_mm.deploy.fuse` returns. It is changed in place.
        image: Example on the GPU, (B, C, H, W); its contents do not matter.
        dtype: Autocast dtype, None without autocast.

    Raises:
        ValueError: If the image is not on a GPU or the module in training.
    """
    _check_image(image)
    if module.training:
        raise ValueError(
            'module must be in evaluation mode; call module.eval() first'
        )
    eager, given = module.forward, image.detach().clone()
    narrow = dict(dtype=dtype, enabled=dtype is not None, cache_enabled=False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.autocast('cuda', **narrow):
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                eager(given)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            output = eager(given)

    def replay(image: Tensor):
        given.copy_(image)
        graph.replay()
        return output

    module.forward = _chooser(module, eager, replay, given, training=False)
