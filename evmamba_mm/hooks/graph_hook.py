"""Captures a part of a model as CUDA graphs while mmengine trains it."""

import logging
import time
from collections import Counter
from typing import NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..arguments import checked
from ..graphs import (
    autocast_dtype,
    check_training,
    graph_training,
    remove_graphs,
)

_logger = logging.getLogger('evmamba_mm')


class _Call(NamedTuple):
    """Calls that can replay one capture."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    autocast: torch.dtype | None

    def __str__(self) -> str:
        autocast = self.autocast or 'no'
        return f'{self.shape} in {self.dtype}, {autocast} autocast'


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Train a part of the model with CUDA graphs.

    The hook counts calls until an image shape was frequent enough, and then
    captures its forward and backward between two iterations, with
    :func:`evmamba_mm.graphs.graph_training`. Other shapes, such as a smaller
    last batch, and validation run eagerly. Training ends with the module's
    own forward restored.

    Args:
        module: Dotted path of the part in the model. It takes one tensor.
        shapes: How many shapes to capture at most. Each keeps the memory of
            its activations.
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
        module: str = 'backbone',
        shapes: int = 1,
        repeats: int = 3,
        strict: bool = True,
    ) -> None:
        if not isinstance(module, str) or not module:
            raise ValueError(
                f'module must be a path such as backbone, got {module!r}'
            )
        self.module = module
        self.shapes = shapes
        self.repeats = repeats
        self.strict = strict
        self._part: nn.Module | None = None
        self._handle = None
        self._seen: Counter[_Call] = Counter()
        self._captured: set[_Call] = set()

    def before_train(self, runner) -> None:
        """Find the module and start counting its calls."""
        try:
            part = self._capturable(runner)
        except ValueError as error:
            if self.strict:
                raise
            _logger.warning('training without CUDA graphs: %s', error)
            return
        if not any(parameter.is_cuda for parameter in part.parameters()):
            _logger.log(
                logging.WARNING if self.strict else logging.INFO,
                'CUDAGraphHook does nothing: %s is not on a CUDA device and '
                'trains without graphs',
                self.module,
            )
            return
        self._part = part
        self._seen.clear()
        self._captured.clear()
        self._count_calls(part)

    def before_train_iter(
        self, runner, batch_idx: int, data_batch=None
    ) -> None:
        """Capture the shapes that came often enough."""
        if self._handle is None:
            return
        for call, times in self._seen.items():
            if times >= self.repeats and call not in self._captured:
                self._capture(call)
            if self._part is None:
                return
            if len(self._captured) == self.shapes:
                self._stop_counting()
                return

    def after_train(self, runner) -> None:
        """Restore the module's own forward."""
        if self._part is None:
            return
        if not self._captured:
            _logger.warning(
                'CUDAGraphHook captured nothing: %s saw no image shape %d '
                'times in training; the most frequent was %s',
                self.module,
                self.repeats + 1,
                self._seen.most_common(1) or 'none',
            )
        self._stop_counting()
        remove_graphs(self._part)
        self._part = None

    def _capturable(self, runner) -> nn.Module:
        if runner.cfg.get('compile'):
            raise ValueError(
                'CUDAGraphHook cannot be combined with compile, got '
                f'compile={runner.cfg["compile"]!r}; remove one of them'
            )
        part = self._find(runner.model)
        check_training(part)
        return part

    def _find(self, model: nn.Module) -> nn.Module:
        if is_model_wrapper(model):
            if not isinstance(model, DistributedDataParallel):
                raise ValueError(
                    'CUDAGraphHook needs an unwrapped model or '
                    'MMDistributedDataParallel, got '
                    f'{type(model).__name__}'
                )
            model = model.module
        part = model
        for name in self.module.split('.'):
            part = getattr(part, name, None)
            if not isinstance(part, nn.Module):
                names = [name for name, _ in model.named_children()]
                raise ValueError(
                    f'module={self.module!r} is not in '
                    f'{type(model).__name__}, which has {", ".join(names)}'
                )
        if is_model_wrapper(part):
            raise ValueError(
                f'module={self.module!r} must not be a wrapper, got '
                f'{type(part).__name__}; use {self.module}.module'
            )
        return part

    def _count_calls(self, part: nn.Module) -> None:
        seen = self._seen

        def note(module: nn.Module, inputs: tuple) -> None:
            # A copy of the module brings this function along.
            if module is not part or len(inputs) != 1:
                return
            image = inputs[0]
            if (
                isinstance(image, torch.Tensor)
                and module.training
                and torch.is_grad_enabled()
                and image.is_cuda
                and not image.requires_grad
            ):
                call = _Call(
                    tuple(image.shape),
                    image.dtype,
                    image.device,
                    autocast_dtype(),
                )
                seen[call] += 1

        self._handle = part.register_forward_pre_hook(note)

    def _stop_counting(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _give_up(self, error: Exception) -> None:
        """Raise, or go on without graphs."""
        if self.strict:
            raise error
        _logger.warning('training without CUDA graphs: %s', error)
        self._stop_counting()
        remove_graphs(self._part)
        self._part = None

    def _capture(self, call: _Call) -> None:
        start = time.perf_counter()
        image = torch.zeros(call.shape, dtype=call.dtype, device=call.device)
        try:
            graph_training(self._part, image, call.autocast)
        except torch.OutOfMemoryError as error:
            self._give_up(
                RuntimeError(
                    f'there is too little memory to capture {self.module} for '
                    f'images of {call}: lower the batch size of the '
                    "train_dataloader or the hook's shapes, or remove the hook"
                    f'. {str(error).partition(". ")[0]}'
                )
            )
            # What the capture had taken is free for other shapes.
            torch.cuda.empty_cache()
            return
        except (RuntimeError, ValueError) as error:
            self._give_up(error)
            return
        self._captured.add(call)
        _logger.info(
            'CUDAGraphHook captured %s for images of %s, in %.1f s',
            self.module,
            call,
            time.perf_counter() - start,
        )
