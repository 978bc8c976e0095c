"""Weights of a whole backbone made ready for an inference at once.

While a backbone runs without gradients, layers find their weights here: cast
to the autocast dtype, with the BatchNorm behind folded in. They are computed
anew by every call of the backbone, so that whatever changes a parameter, by
whichever way, is seen.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import (
    BatchNormTensors,
    PreparedWeights,
    WeightJob,
    autocast_dtype,
    can_prepare,
    choose_fused,
    watched,
)

_thread = threading.local()


class InferenceWeight(NamedTuple):
    """A layer whose weight can be made ready.

    Args:
        layer: With a weight and perhaps a bias.
        norm: What follows it: a BatchNorm is folded in, all else is not.
        narrow: Whether the layer computes in the autocast dtype.
    """

    layer: nn.Conv2d | nn.Linear
    norm: nn.Module | None = None
    narrow: bool = True


class _Ready(NamedTuple):
    """What is made ready for one dtype, and where it was made from."""

    pointers: list[int]
    weights: PreparedWeights | None
    found: dict[tuple, tuple[Tensor, Tensor | None]]


class _State:
    """What is known of one backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        # Kept, so that an id stays that of one layer.
        self.entries = list(_inference_weights(backbone))
        self.places = [
            place for entry in self.entries for place in _places(entry)
        ]
        self.seen: dict[torch.dtype, list[int]] = {}
        self.ready: dict[torch.dtype, _Ready] = {}

    def pointers(self) -> list[int] | None:
        """Where all sources are; None if one has no memory or is gone."""
        try:
            found = [t[name].data_ptr() for t, name in self.places]
        except (KeyError, AttributeError, RuntimeError):
            return None
        # As of what is sharded or offloaded between calls.
        return None if 0 in found else found


_states: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _inference_weights(backbone: nn.Module) -> Iterator[InferenceWeight]:
    for module in backbone.modules():
        if hasattr(module, 'inference_weights'):
            yield from module.inference_weights()


def can_fold(norm: nn.Module | None) -> bool:
    """Whether a norm in evaluation is a scale and a shift of each channel."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
    )


def _places(entry: InferenceWeight) -> Iterator[tuple[dict, str]]:
    layers = (entry.layer, entry.norm) if can_fold(entry.norm) else entry[:1]
    for layer in layers:
        for tensors in (layer._parameters, layer._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    yield tensors, name


def _key(layer: nn.Module, norm: nn.Module | None) -> tuple:
    of_norm = (id(norm), norm.eps) if can_fold(norm) else (0, 0.0)
    return id(layer.weight), id(layer.bias), *of_norm


def _job(entry: InferenceWeight, dtype: torch.dtype) -> WeightJob | None:
    layer, norm, narrow = entry
    tensors, eps = None, 0.0
    if can_fold(norm):
        tensors = BatchNormTensors(
            norm.weight, norm.bias, norm.running_mean, norm.running_var
        )
        eps = norm.eps
    elif not narrow or dtype == torch.float32:
        return None
    result = dtype if narrow else torch.float32
    job = WeightJob(layer.weight, layer.bias, tensors, eps, result)
    # What a subclass holds need not be what it shows.
    plain = all(type(x) in (Tensor, nn.Parameter) for x in job.sources)
    return job if plain and can_prepare(job) else None


def _make_ready(
    state: _State,
    device: torch.device,
    dtype: torch.dtype,
    pointers: list[int],
) -> _Ready:
    jobs = {}
    for entry in state.entries:
        job = _job(entry, dtype)
        if job is not None and job.weight.device == device:
            jobs[_key(entry.layer, entry.norm)] = job
    if not jobs:
        return _Ready(pointers, None, {})
    weights = PreparedWeights(list(jobs.values()))
    found = dict(zip(jobs, weights.results, strict=True))
    return _Ready(pointers, weights, found)


def _current(
    backbone: nn.Module, image: Tensor, dtype: torch.dtype
) -> _Ready | None:
    state = _states.get(backbone)
    if state is None:
        state = _states[backbone] = _State(backbone)
    pointers = state.pointers()
    ready = state.ready.get(dtype)
    if ready is not None and ready.pointers == pointers:
        return ready
    # Weights that are elsewhere at each call would be made ready in vain, and
    # a capture must not wait for a copy to the GPU.
    again = pointers is not None and state.seen.get(dtype) == pointers
    captured = image.is_cuda and torch.cuda.is_current_stream_capturing()
    if not again or captured:
        state.seen[dtype] = pointers
        return None
    ready = state.ready[dtype] = _make_ready(
        state, image.device, dtype, pointers
    )
    return ready


class _Using:
    """Shows what is ready to the layers that run inside."""

    def __init__(self, ready: _Ready) -> None:
        self.ready = ready

    def __enter__(self) -> None:
        self.outer = getattr(_thread, 'found', None)
        if self.ready.weights is not None:
            self.ready.weights.refresh()
        _thread.found = self.ready.found

    def __exit__(self, *error: object) -> None:
        _thread.found = self.outer


def prepared_weights(
    backbone: nn.Module, image: Tensor
) -> contextlib.AbstractContextManager:
    """Context in which a backbone's layers find their weights ready.

    It does nothing while gradients are on, while something watches the
    operations, where the kernels do not run, and at the first call with the
    weights where they are.

    Args:
        backbone: Module whose submodules tell their weights by a method
            ``inference_weights``.
        image: Its input.
    """
    if (
        torch.is_grad_enabled()
        or watched()
        or choose_fused(image, 'auto') != 'triton'
        # A replica of nn.DataParallel lives for one call.
        or getattr(backbone, '_is_replica', False)
    ):
        return contextlib.nullcontext()
    narrow = torch.is_autocast_enabled(image.device.type)
    dtype = autocast_dtype(image) if narrow else torch.float32
    ready = _current(backbone, image, dtype)
    return contextlib.nullcontext() if ready is None else _Using(ready)


def ready_weight(
    layer: nn.Conv2d | nn.Linear, norm: nn.Module | None = None
) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer, if they are ready.

    Args:
        layer: The layer.
        norm: What follows it; a BatchNorm in evaluation is folded in.
    """
    found = getattr(_thread, 'found', None)
    return None if found is None else found.get(_key(layer, norm))


def ready_or_own(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, ready ones where there are any."""
    return ready_weight(layer) or (layer.weight, layer.bias)


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Call a linear layer, with its ready weight if there is one."""
    ready = ready_weight(layer)
    if ready is None or layer._forward_hooks or layer._forward_pre_hooks:
        return layer(x)
    return F.linear(x, *ready)
