"""State of a module that a graph fixes."""

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_

import torch
from torch import nn

from ..ops.tracing import has_global_hooks
from .checks import hooks

_tables = attrgetter('_modules', '_parameters', '_buffers')
_training = attrgetter('training')
_requires_grad = attrgetter('requires_grad')


def members(modules: Iterable[nn.Module]) -> list:
    """Submodules, parameters, buffers, and None for those left out."""
    tables = chain.from_iterable(map(_tables, modules))
    return list(chain.from_iterable(map(dict.values, tables)))


class ModuleState:
    """Compares a module with its state when this was created.

    It separates the addresses of tensors from the settings: the graph of a
    moved module is useless, since values computed from the old weights may be
    gone too. It is written for speed, because every replay waits for it.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = tuple(module.modules())
        # Held, lest another get the identity of one.
        self._first = members(self._modules)
        self._tensors = [
            member
            for member in self._first
            if isinstance(member, torch.Tensor)
        ]
        # Held, lest another get the address of one.
        self._memory = [tensor.detach() for tensor in self._tensors]
        self._places = self._current_places()
        self._settings = self._current_settings()

    def _current_places(self) -> list[int]:
        return list(map(torch.Tensor.data_ptr, self._tensors))

    def _current_settings(self) -> list[bool]:
        inner_hooks = chain.from_iterable(map(hooks, self._modules[1:]))
        return [
            any(inner_hooks) or has_global_hooks(),
            *map(_training, self._modules),
            *map(_requires_grad, self._tensors),
        ]

    def has_moved(self) -> bool:
        """Whether a module, a parameter or a buffer was replaced or moved."""
        found = members(self._modules)
        return (
            len(found) != len(self._first)
            or not all(map(is_, found, self._first))
            or self._current_places() != self._places
        )

    def is_set_otherwise(self) -> bool:
        """Whether gradients, training mode or hooks inside differ."""
        return self._current_settings() != self._settings
