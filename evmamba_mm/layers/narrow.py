"""Weights of a part of a network, cast to the autocast dtype together.

Autocast casts a weight where it is used, and the gradient back, by a launch
each; of a small network that is a tenth of all launches of a training step.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..ops import choose_fused, watched
from .plain import has_hooks, is_plain

_thread = threading.local()


class _Cast(NamedTuple):
    """What was cast, and of what."""

    weight: Tensor
    bias: Tensor | None
    results: tuple[Tensor, Tensor | None]


class _CastTogether(torch.autograd.Function):
    """Casts of several tensors; their gradients come back together."""

    @staticmethod
    def forward(ctx, dtype, *tensors):
        ctx.set_materialize_grads(False)
        ctx.dtypes = [x.dtype for x in tensors]
        return tuple(_copies(tensors, [dtype] * len(tensors)))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        return None, *_copies(gradients, ctx.dtypes)


def _copies(
    tensors: Sequence[Tensor | None], dtypes: Sequence[torch.dtype]
) -> list[Tensor | None]:
    """Each tensor that there is, in its dtype."""
    copies = [
        None
        if x is None
        else torch.empty_like(
            x, dtype=dtype, memory_format=torch.contiguous_format
        )
        for x, dtype in zip(tensors, dtypes, strict=True)
    ]
    there = [x for x in tensors if x is not None]
    if there:
        written = [x for x in copies if x is not None]
        torch._foreach_copy_(written, there)
    return copies


def _layers(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Layers that compute in the autocast dtype.

    A hook may bring or change the weights of what is below it, after the cast.
    """
    for module in modules:
        if has_hooks(module):
            continue
        if hasattr(module, 'training_weights'):
            for layer in module.training_weights():
                if not has_hooks(layer):
                    yield layer
        yield from _layers(module.children())


def asked_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast asks for, None where it is off."""
    if not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


@contextlib.contextmanager
def _using(found: dict[int, _Cast], asked: tuple) -> Iterator[None]:
    outer = getattr(_thread, 'using', None)
    _thread.using = found, asked
    try:
        yield
    finally:
        _thread.using = outer


def narrow_weights(
    modules: Iterable[nn.Module], x: Tensor
) -> contextlib.AbstractContextManager:
    """Context in which layers find their weights cast, in training.

    Their gradients are there when those of all of them are, so that a
    distributed training sends the gradients of one part while another is
    differentiated. It does nothing without autocast and without gradients,
    while something watches the operations, and where the kernels do not run.

    Args:
        modules: Parts of a network that run inside. What of them has a
            method ``training_weights`` tells by it the layers to cast.
        x: Their input.
    """
    dtype = asked_dtype(x.device.type)
    if (
        dtype is None
        or not torch.is_grad_enabled()
        or watched()
        or choose_fused(x, 'auto') != 'triton'
    ):
        return contextlib.nullcontext()
    casts = []
    for layer in _layers(modules):
        own = layer._parameters
        if is_plain(layer, nn.Linear) or is_plain(layer, nn.Conv2d):
            casts.append((layer, own.get('weight'), own.get('bias')))
    # What has no gradient must not get one by its neighbours.
    wide = {
        id(tensor): tensor
        for _, *both in casts
        for tensor in both
        if tensor is not None
        and tensor.requires_grad
        and tensor.dtype == torch.float32
        and tensor.device == x.device
    }
    if not wide:
        return contextlib.nullcontext()
    narrow = _CastTogether.apply(dtype, *wide.values())
    results = dict(zip(wide, narrow, strict=True))
    found = {
        id(layer): _Cast(*both, tuple(results.get(id(x), x) for x in both))
        for layer, *both in casts
    }
    return _using(found, (x.device.type, dtype))


def narrow_weight(
    layer: nn.Conv2d | nn.Linear,
) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer, cast if they were, or None."""
    using = getattr(_thread, 'using', None)
    # A trace of a part would keep the casts of this call for all others.
    if using is None or watched():
        return None
    found, (device_type, dtype) = using
    cast = found.get(id(layer))
    if cast is None or asked_dtype(device_type) != dtype:
        return None
    weight, bias = (layer._parameters.get(name) for name in ('weight', 'bias'))
    if weight is not cast.weight or bias is not cast.bias:
        return None
    return cast.results
