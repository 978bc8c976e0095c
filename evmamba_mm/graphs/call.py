"""Properties of a call that a graph fixes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .capture import autocast_dtype

# A tensor, as a backbone takes it, or feature maps, as a neck or head does.
Inputs = Tensor | Sequence[Tensor]


def tensors_of(inputs: object) -> tuple[Tensor, ...] | None:
    """The tensors of an input, None if it has anything else."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    if not isinstance(inputs, tuple | list) or not inputs:
        return None
    if not all(isinstance(x, Tensor) for x in inputs):
        return None
    return tuple(inputs)


class Call(NamedTuple):
    """A call of a module, by all that a replay has in common with a capture.

    Args:
        is_tensor: Whether the input is a tensor, not a sequence of some.
        tensors: Shape, dtype, device and ``requires_grad`` of each.
        grads: Whether gradients are enabled.
        autocast: Autocast dtype, None without autocast.
    """

    is_tensor: bool
    tensors: tuple[tuple[torch.Size, torch.dtype, torch.device, bool], ...]
    grads: bool
    autocast: torch.dtype | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first tensor."""
        return tuple(self.tensors[0][0])

    def __str__(self) -> str:
        dtype = self.tensors[0][1]
        others = len(self.tensors) - 1
        more = f' and {others} more' if others else ''
        return (
            f'{self.shape}{more} in {dtype}, {self.autocast or "no"} autocast'
        )


def call_of(
    inputs: object, grads: bool, autocast: torch.dtype | None
) -> Call | None:
    """Describe a call, or None for an input that no graph takes."""
    tensors = tensors_of(inputs)
    if tensors is None:
        return None
    return Call(
        isinstance(inputs, Tensor),
        tuple((x.shape, x.dtype, x.device, x.requires_grad) for x in tensors),
        grads,
        autocast,
    )


def current_call(inputs: object) -> Call | None:
    """Describe a call in the modes that are on now."""
    return call_of(inputs, torch.is_grad_enabled(), autocast_dtype())


def copy_of(inputs: Inputs) -> Inputs:
    """Leaves with the values of an input, and gradients where it has them."""
    tensors = tensors_of(inputs)
    copies = [
        x.detach().clone().requires_grad_(x.requires_grad) for x in tensors
    ]
    return copies[0] if isinstance(inputs, Tensor) else tuple(copies)
