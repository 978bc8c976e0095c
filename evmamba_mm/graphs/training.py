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

from .call import Inputs, copy_of, tensors_of
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


class Turn:
    """Which replay has its activations in the memory that graphs share."""

    def __init__(self) -> None:
        self._calls = 0
        # The replay whose backward is to come, and its node of autograd.
        self._due: int | None = None
        self._node: Callable = lambda: None

    def waits(self) -> bool:
        """Whether the backward of the last replay has not run yet."""
        return self._due is not None and self._node() is not None

    def begin(self, ctx) -> None:
        """Note that a replay's forward has run on behalf of a node."""
        self._calls += 1
        self._due = ctx.number = self._calls
        self._node = weakref.ref(ctx)

    def end(self, number: int) -> None:
        """Let the backward of the replay of this number run."""
        if self._due != number:
            raise RuntimeError(
                'the activations of this replay are gone: call backward once, '
                'before the next forward, or remove the graphs with '
                'evmamba_mm.graphs.remove_graphs(module)'
            )
        self._due = None


class TrainingGraph:
    """Forward and backward of a module for inputs of one shape and dtype.

    Args:
        module: Module to capture.
        eager: Its own forward.
        inputs: Example.
        dtype: Autocast dtype of the forward, None without autocast.
        turn: Shared with all graphs of the module.
        pool: Memory of other graphs of the module, None if there are none.
    """

    def __init__(
        self,
        module: nn.Module,
        eager: Callable,
        inputs: Inputs,
        dtype: torch.dtype | None,
        turn: Turn,
        pool: tuple | None,
    ) -> None:
        self.state = ModuleState(module)
        self._turn = turn
        self._eager = eager
        self._inputs = copy_of(inputs)
        leaves = tensors_of(self._inputs)
        self._input_places = [leaf.detach() for leaf in leaves]
        self._dtype = dtype
        self._parameters = tuple(
            p for p in module.parameters() if p.requires_grad
        )
        with (
            _kept_buffers(module),
            _leaves(module, self._parameters) as parameters,
            torch.enable_grad(),
            autocast(None),
        ):
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            self._capture([*wanted, *parameters], pool)
        self._inputs_wanted = [leaf.requires_grad for leaf in leaves]
        del self._eager, self._inputs

    def _call(self) -> list[Tensor]:
        with autocast(self._dtype):
            output = self._eager(self._inputs)
        outputs, self._structure = _pytree.tree_flatten(output)
        if not all(isinstance(output, Tensor) for output in outputs):
            raise ValueError('module must return only tensors')
        return outputs

    def _capture(self, leaves: Sequence[Tensor], pool: tuple | None) -> None:
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

        stream = warm_up(step, self._input_places[0].device)
        self._forward = torch.cuda.CUDAGraph()
        with capture(self._forward, stream, pool):
            outputs = self._call()
        self._differentiable = [output.requires_grad for output in outputs]
        self._output_gradients = _zeros(outputs)
        self._gradients: Sequence[Tensor | None] = ()
        if self._output_gradients:
            self._backward = torch.cuda.CUDAGraph()
            with capture(self._backward, stream, self._forward.pool()):
                self._gradients = go_back(outputs, self._output_gradients)
        self._outputs = [output.detach() for output in outputs]

    def pool(self) -> tuple:
        """Memory of its activations, for other graphs to share."""
        return self._forward.pool()

    def replay(self, inputs: Inputs):
        """Result of the module for an input, with its backward."""
        tensors = tensors_of(inputs)
        outputs = _Replay.apply(self, *tensors, *self._parameters)
        return _pytree.tree_unflatten(list(outputs), self._structure)

    def go_forward(self, tensors: Sequence[Tensor], ctx) -> tuple[Tensor, ...]:
        """Replay the forward on behalf of a node of autograd."""
        inputs = tensors[: len(self._input_places)]
        torch._foreach_copy_(self._input_places, inputs)
        self._forward.replay()
        self._turn.begin(ctx)
        outputs = tuple(output.clone() for output in self._outputs)
        pairs = zip(outputs, self._differentiable, strict=True)
        ctx.mark_non_differentiable(*(o for o, wanted in pairs if not wanted))
        return outputs

    def go_backward(
        self, gradients: Sequence[Tensor], number: int
    ) -> list[Tensor | None]:
        """Replay the backward of the call of this number.

        Returns:
            Gradients of the inputs and the parameters, None for those that
            have none.
        """
        self._turn.end(number)
        pairs = zip(gradients, self._differentiable, strict=True)
        given = [gradient for gradient, wanted in pairs if wanted]
        torch._foreach_copy_(self._output_gradients, given)
        self._backward.replay()
        present = [g for g in self._gradients if g is not None]
        # Few launches for many copies, where clone() takes one each.
        copies = iter(torch._foreach_mul(present, 1) if present else ())
        found = iter(
            [None if g is None else next(copies) for g in self._gradients]
        )
        inputs = [next(found) if x else None for x in self._inputs_wanted]
        return [*inputs, *found]


class _Replay(torch.autograd.Function):
    """A replay as autograd sees it.

    Its results are copies: a caller may keep the features, and autograd
    the gradients, for longer than until the next replay.
    """

    @staticmethod
    def forward(ctx, graph: TrainingGraph, *tensors):
        ctx.graph = graph
        return graph.go_forward(tensors, ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return None, *ctx.graph.go_backward(gradients, ctx.number)
