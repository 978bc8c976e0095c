"""A captured forward and its captured backward.

This does not use torch.cuda.make_graphed_callables: its next replay overwrites
the gradients that it returned, which breaks gradient accumulation, and it
cannot capture a module that DistributedDataParallel has wrapped.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree

from .capture import autocast, capture, warm_up
from .state import ModuleState


@contextmanager
def _leaves(
    module: nn.Module, parameters: Sequence[nn.Parameter]
) -> Iterator[list[nn.Parameter]]:
    """Put others of the same memory in the places of the parameters.

    A parameter whose gradients DistributedDataParallel reduces, or whose last
    loss is still alive, has a node of autograd that belongs to the stream it
    was made on, and a backward waits for that stream. A capture must not.
    """
    places = [
        (part._parameters, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None
    ]
    leaves = {
        parameter: nn.Parameter(parameter.detach(), parameter.requires_grad)
        for _, _, parameter in places
    }
    try:
        for table, name, parameter in places:
            table[name] = leaves[parameter]
        yield [leaves[parameter] for parameter in parameters]
    finally:
        for table, name, parameter in places:
            table[name] = parameter


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in kept:
                buffer.copy_(old)


def _zeros(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(o) for o in outputs if o.requires_grad]


class TrainingGraph:
    """Forward and backward of a module for images of one shape and dtype.

    Args:
        module: Module to capture.
        eager: Its own forward.
        image: Example.
        dtype: Autocast dtype of the forward, None without autocast.
    """

    grads = True

    def __init__(
        self,
        module: nn.Module,
        eager: Callable,
        image: Tensor,
        dtype: torch.dtype | None,
    ) -> None:
        self.state = ModuleState(module)
        self._eager = eager
        self._image = image.detach().clone()
        self._dtype = dtype
        self._parameters = tuple(
            p for p in module.parameters() if p.requires_grad
        )
        self._calls = 0
        # The call whose backward is to come, and its node of autograd.
        self._due: int | None = None
        self._node: Callable = lambda: None
        with (
            _kept_buffers(module),
            _leaves(module, self._parameters) as leaves,
            torch.enable_grad(),
            autocast(None),
        ):
            self._capture(leaves)
        del self._eager

    def _call(self) -> list[Tensor]:
        with autocast(self._dtype):
            output = self._eager(self._image)
        outputs, self._structure = _pytree.tree_flatten(output)
        if not all(isinstance(output, Tensor) for output in outputs):
            raise ValueError('module must return only tensors')
        return outputs

    def _capture(self, leaves: Sequence[Tensor]) -> None:
        def go_back(
            outputs: Sequence[Tensor], gradients: Sequence[Tensor]
        ) -> Sequence[Tensor | None]:
            ends = [output for output in outputs if output.requires_grad]
            if not ends:
                return ()
            return torch.autograd.grad(
                ends, leaves, gradients, allow_unused=True
            )

        def step() -> None:
            outputs = self._call()
            go_back(outputs, _zeros(outputs))

        stream = warm_up(step, self._image.device)
        self._forward = torch.cuda.CUDAGraph()
        with capture(self._forward, stream):
            outputs = self._call()
        self._differentiable = [output.requires_grad for output in outputs]
        self._output_gradients = _zeros(outputs)
        self._gradients: Sequence[Tensor | None] = ()
        if self._output_gradients:
            self._backward = torch.cuda.CUDAGraph()
            with capture(self._backward, stream, self._forward.pool()):
                self._gradients = go_back(outputs, self._output_gradients)
        self._outputs = [output.detach() for output in outputs]

    def waits(self) -> bool:
        """Whether the backward of the last replay has not run yet."""
        return self._due is not None and self._node() is not None

    def replay(self, image: Tensor):
        """Result of the module for an image, with its backward."""
        outputs = _Replay.apply(self, image, *self._parameters)
        return _pytree.tree_unflatten(list(outputs), self._structure)

    def go_forward(self, image: Tensor, ctx) -> tuple[Tensor, ...]:
        """Replay the forward on behalf of a node of autograd."""
        self._image.copy_(image)
        self._forward.replay()
        self._calls += 1
        self._due = ctx.number = self._calls
        self._node = weakref.ref(ctx)
        outputs = tuple(output.clone() for output in self._outputs)
        pairs = zip(outputs, self._differentiable, strict=True)
        ctx.mark_non_differentiable(*(o for o, wanted in pairs if not wanted))
        return outputs

    def go_backward(
        self, gradients: Sequence[Tensor], number: int
    ) -> list[Tensor | None]:
        """Replay the backward of the call of this number."""
        if self._due != number:
            raise RuntimeError(
                'the activations of this replay are gone: call backward once, '
                'before the next forward, or remove the graphs with '
                'evmamba_mm.graphs.remove_graphs(module)'
            )
        self._due = None
        pairs = zip(gradients, self._differentiable, strict=True)
        given = [gradient for gradient, wanted in pairs if wanted]
        for place, gradient in zip(self._output_gradients, given, strict=True):
            place.copy_(gradient)
        self._backward.replay()
        present = [g for g in self._gradients if g is not None]
        # Few launches for many copies, where clone() takes one each.
        copies = iter(torch._foreach_mul(present, 1) if present else ())
        return [None if g is None else next(copies) for g in self._gradients]


class _Replay(torch.autograd.Function):
    """A replay as autograd sees it.

    Its results are copies: a caller may keep the features, and autograd
    the gradients, for longer than until the next replay.
    """

    @staticmethod
    def forward(ctx, graph: TrainingGraph, image: Tensor, *parameters):
        ctx.graph = graph
        return graph.go_forward(image, ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return None, None, *ctx.graph.go_backward(gradients, ctx.number)
