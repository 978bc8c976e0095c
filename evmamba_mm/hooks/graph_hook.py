"""Captures parts of a model as CUDA graphs while mmengine trains it."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ..arguments import checked
from ..graphs import (
    Call,
    Inputs,
    check_training,
    copy_of,
    current_call,
    graph_training,
    remove_graphs,
    tensors_of,
)

_logger = logging.getLogger('evmamba_mm')


class _Part:
    """A module whose calls are counted until they are captured.

    Args:
        name: Its path in the model.
        module: The module.
        repeats: Calls before a capture.
        shapes: Captures at most.
    """

    def __init__(
        self, name: str, module: nn.Module, repeats: int, shapes: int
    ) -> None:
        self.name = name
        self.module = module
        self.repeats = repeats
        self.shapes = shapes
        self.seen: Counter[Call] = Counter()
        self.captured: set[Call] = set()
        self._examples: dict[Call, Inputs] = {}
        self._handle = self._count_calls()

    def _count_calls(self) -> RemovableHandle:
        part = self.module

        def note(module: nn.Module, inputs: tuple) -> None:
            # A copy of the module brings this function along.
            if module is part and len(inputs) == 1:
                self._note(inputs[0])

        return part.register_forward_pre_hook(note)

    def _note(self, inputs: object) -> None:
        if not self.module.training or not torch.is_grad_enabled():
            return
        tensors = tensors_of(inputs)
        if tensors is None or not all(x.is_cuda for x in tensors):
            return
        call = current_call(inputs)
        self.seen[call] += 1
        if self.seen[call] == self.repeats and call not in self.captured:
            self._examples[call] = copy_of(inputs)

    def capture_due(self) -> None:
        """Capture what came often enough, as far as it is allowed."""
        for call in [*self._examples]:
            if len(self.captured) == self.shapes:
                break
            start = time.perf_counter()
            self._capture(call)
            self.captured.add(call)
            _logger.info(
                'CUDAGraphHook captured %s for inputs of %s, in %.1f s',
                *(self.name, call, time.perf_counter() - start),
            )
        if len(self.captured) == self.shapes:
            self.stop_counting()

    def _capture(self, call: Call) -> None:
        inputs = self._examples.pop(call)
        try:
            graph_training(self.module, inputs, call.autocast)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f'there is too little memory to capture {self.name} for '
                f'inputs of {call}: lower the batch size of the '
                "train_dataloader or the hook's shapes, or remove the hook. "
                f'{str(error).partition(". ")[0]}'
            ) from error

    def stop_counting(self) -> None:
        self._handle.remove()
        self._examples.clear()

    def restore(self) -> None:
        self.stop_counting()
        remove_graphs(self.module)


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Train parts of the model with CUDA graphs.

    The hook counts calls until an input shape was frequent enough, and then
    captures its forward and backward between two iterations, with
    :func:`evmamba_mm.graphs.graph_training`. Other shapes, such as a smaller
    last batch, and validation run eagerly. Training ends with the modules'
    own forward restored.

    Args:
        module: Dotted path of the part in the model, or several. Each takes
            one argument, a tensor or a sequence of tensors.
        shapes: How many shapes of a part to capture at most. The largest
            keeps the memory of its activations.
        repeats: Training calls with one shape before its capture.
        strict: Whether a part that cannot be captured ends the training.
            Otherwise a warning says why, and it trains without graphs.

    Raises:
        ValueError: If an argument is illegal; or, before a strict training,
            if the model has no such part, the part cannot be captured, or a
            wrapper other than DistributedDataParallel holds the model.
    """

    @checked
    def __init__(
        self,
        module: str | Sequence[str] = 'backbone',
        shapes: int = 1,
        repeats: int = 3,
        strict: bool = True,
    ) -> None:
        names = [module] if isinstance(module, str) else module
        if (
            not isinstance(names, list | tuple)
            or not names
            or not all(isinstance(name, str) and name for name in names)
        ):
            raise ValueError(
                'module must be a path such as backbone, or several, got '
                f'{module!r}'
            )
        if len(set(names)) < len(names):
            raise ValueError(f'module must name a part once, got {module!r}')
        self.module = module
        self.names = tuple(names)
        self.shapes = shapes
        self.repeats = repeats
        self.strict = strict
        self._parts: list[_Part] = []

    def before_train(self, runner) -> None:
        """Find the modules and start counting their calls."""
        self._parts = []
        found = {}
        for name in self.names:
            try:
                found[name] = self._capturable(runner, name)
            except ValueError as error:
                if self.strict:
                    raise
                self._give_up(name, error)
        for name, module in found.items():
            if any(p.is_cuda for p in module.parameters()):
                part = _Part(name, module, self.repeats, self.shapes)
                self._parts.append(part)
                continue
            _logger.log(
                logging.WARNING if self.strict else logging.INFO,
                'CUDAGraphHook does nothing: %s is not on a CUDA device and '
                'trains without graphs',
                name,
            )

    def before_train_iter(
        self, runner, batch_idx: int, data_batch=None
    ) -> None:
        """Capture the shapes that came often enough."""
        for part in [*self._parts]:
            try:
                part.capture_due()
            except (RuntimeError, ValueError) as error:
                if self.strict:
                    raise
                self._give_up(part.name, error)
                part.restore()
                self._parts.remove(part)
                # What the capture had taken is free for other shapes.
                torch.cuda.empty_cache()

    def after_train(self, runner) -> None:
        """Restore the modules' own forward."""
        for part in self._parts:
            if not part.captured:
                most = [
                    f'{call}, {times} times'
                    for call, times in part.seen.most_common(1)
                ]
                _logger.warning(
                    'CUDAGraphHook captured nothing: %s saw no input shape %d '
                    'times in training; the most frequent was %s',
                    *(part.name, self.repeats + 1, (most or ['none'])[0]),
                )
            part.restore()
        self._parts = []

    def _give_up(self, name: str, error: Exception) -> None:
        _logger.warning('training %s without CUDA graphs: %s', name, error)

    def _capturable(self, runner, name: str) -> nn.Module:
        if runner.cfg.get('compile'):
            raise ValueError(
                'CUDAGraphHook cannot be combined with compile, got '
                f'compile={runner.cfg["compile"]!r}; remove one of them'
            )
        part = self._find(runner.model, name)
        check_training(part)
        return part

    def _find(self, model: nn.Module, path: str) -> nn.Module:
        if is_model_wrapper(model):
            if not isinstance(model, DistributedDataParallel):
                raise ValueError(
                    'CUDAGraphHook needs an unwrapped model or a '
                    'DistributedDataParallel, got '
                    f'{type(model).__name__}'
                )
            model = model.module
        part = model
        for name in path.split('.'):
            part = getattr(part, name, None)
            if not isinstance(part, nn.Module):
                names = [name for name, _ in model.named_children()]
                raise ValueError(
                    f'module={path!r} is not in '
                    f'{type(model).__name__}, which has {", ".join(names)}'
                )
        if is_model_wrapper(part):
            raise ValueError(
                f'module={path!r} must not be a wrapper, got '
                f'{type(part).__name__}; use {path}.module'
            )
        return part
