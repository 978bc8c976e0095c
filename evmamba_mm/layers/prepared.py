"""Weights of a whole backbone made ready for an inference at once.

While a backbone runs without gradients, layers find their weights here: cast
to the autocast dtype, with the BatchNorm behind folded in. They are computed
anew by every call of the backbone, so that whatever changes a parameter, by
whichever way, is seen.
"""

import contextlib
import operator
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import (
    BatchNormTensors,
    PreparedWeights,
    RowLayout,
    WeightJob,
    autocast_dtype,
    can_prepare,
    choose_fused,
    watched,
)
from .narrow import asked_dtype, narrow_weight
from .plain import is_plain, is_plain_and_unseen

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


class InferenceRows(NamedTuple):
    """A parameter whose rows an inference reads in another order.

    Args:
        layer: Whose parameter it is, read in the autocast dtype.
        name: Of the parameter.
        layout: Says where its rows go.
    """

    layer: nn.Module
    name: str
    layout: Callable[[], RowLayout]


class _Made(NamedTuple):
    """What was made, and of what."""

    weight: Tensor
    bias: Tensor | None
    eps: float
    result: tuple[Tensor, Tensor | None]


class _Ready(NamedTuple):
    """What is made ready for one dtype, and where it was made from.

    It is found by the ids of layer and norm, or the id of the layer and the
    name of the parameter.
    """

    pointers: list[int]
    weights: PreparedWeights | None
    found: dict[tuple[int, int | str], _Made]


class _State:
    """What is known of one backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        self.seen: dict[torch.dtype, list[int]] = {}
        self.ready: dict[torch.dtype, _Ready] = {}
        self.look_up(backbone)

    def look_up(self, backbone: nn.Module) -> None:
        """Find the entries, and where the tensors are that they read."""
        # Kept, so that an id stays that of one layer.
        self.entries = list(_inference_weights(backbone))
        places = {
            (id(tensors), name): tensors
            for entry in self.entries
            for tensors, name in _places(entry)
        }
        self.tensors = list(places.values())
        self.names = [name for _, name in places]

    def pointers(self) -> list[int] | None:
        """Where all sources are, 0 without memory; None if one is gone."""
        sources = map(operator.getitem, self.tensors, self.names)
        try:
            return list(map(Tensor.data_ptr, sources))
        except (KeyError, TypeError, RuntimeError):
            return None


_states: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _inference_weights(
    backbone: nn.Module,
) -> Iterator[InferenceWeight | InferenceRows]:
    for module in backbone.modules():
        if hasattr(module, 'inference_weights'):
            # What is known of a backbone must not keep it alive.
            for entry in module.inference_weights():
                if entry.layer is not backbone:
                    yield entry


def can_fold(norm: nn.Module | None) -> bool:
    """Whether a norm in evaluation is a scale and a shift of each channel."""
    return (
        isinstance(norm, nn.BatchNorm2d)
        and is_plain(norm, nn.BatchNorm2d)
        and norm.track_running_stats
    )


def _places(
    entry: InferenceWeight | InferenceRows,
) -> Iterator[tuple[dict, str]]:
    """Where the tensors are that an entry is made of."""
    layer, norm, both = entry.layer, None, ('weight', 'bias')
    if isinstance(entry, InferenceRows):
        read = [(layer._parameters, (entry.name,))]
    else:
        norm, read = entry.norm, [(layer._parameters, both)]
    if can_fold(norm):
        statistics = ('running_mean', 'running_var')
        read += [(norm._parameters, both), (norm._buffers, statistics)]
    for tensors, names in read:
        for name in names:
            if tensors.get(name) is not None:
                yield tensors, name


def _job(
    entry: InferenceWeight | InferenceRows, dtype: torch.dtype
) -> WeightJob | None:
    parameters = entry.layer._parameters
    if isinstance(entry, InferenceRows):
        weight = parameters.get(entry.name)
        if weight is None or weight.dim() != 3:
            return None
        job = WeightJob(weight, None, None, 0.0, dtype, entry.layout())
    else:
        norm, tensors, eps = entry.norm, None, 0.0
        if can_fold(norm):
            tensors = BatchNormTensors(
                norm.weight, norm.bias, norm.running_mean, norm.running_var
            )
            eps = norm.eps
        elif not entry.narrow or dtype == torch.float32:
            return None
        result = dtype if entry.narrow else torch.float32
        weight, bias = parameters.get('weight'), parameters.get('bias')
        job = WeightJob(weight, bias, tensors, eps, result)
    # What a subclass holds need not be what it shows.
    plain = all(type(x) in (Tensor, nn.Parameter) for x in job.sources)
    return job if plain and can_prepare(job) else None


def _key(entry: InferenceWeight | InferenceRows) -> tuple[int, int | str]:
    if isinstance(entry, InferenceRows):
        return id(entry.layer), entry.name
    norm = entry.norm if can_fold(entry.norm) else None
    return id(entry.layer), id(norm)


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
            jobs[_key(entry)] = job
    if not jobs:
        return _Ready(pointers, None, {})
    weights = PreparedWeights(list(jobs.values()))
    found = {
        key: _Made(job.weight, job.bias, job.eps, result)
        for (key, job), result in zip(
            jobs.items(), weights.results, strict=True
        )
    }
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
    # A bias that has come since is read too.
    state.look_up(backbone)
    pointers = state.pointers()
    # No memory has what is sharded or offloaded between calls.
    if pointers is not None and 0 in pointers:
        pointers = None
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

    def __init__(self, ready: _Ready, device_type: str) -> None:
        self.ready = ready
        self.asked = asked_dtype(device_type)
        self.device_type = device_type

    def __enter__(self) -> None:
        self.outer = getattr(_thread, 'using', None)
        if self.ready.weights is not None:
            self.ready.weights.refresh()
        _thread.using = self

    def __exit__(self, *error: object) -> None:
        _thread.using = self.outer


def _found() -> dict[tuple[int, int | str], _Made] | None:
    """What is ready, if it is for what is computed now."""
    using = getattr(_thread, 'using', None)
    # A part of a backbone may turn gradients on, or autocast off.
    if using is None or torch.is_grad_enabled():
        return None
    same = asked_dtype(using.device_type) == using.asked
    return using.ready.found if same else None


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
    if ready is None:
        return contextlib.nullcontext()
    return _Using(ready, image.device.type)


def ready_weight(
    layer: nn.Conv2d | nn.Linear, norm: nn.Module | None = None
) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer, if they are ready.

    Args:
        layer: The layer.
        norm: The BatchNorm in evaluation that is folded in, or None.
    """
    found = _found()
    made = None if found is None else found.get((id(layer), id(norm)))
    if made is None:
        return None
    own = layer._parameters
    same = own.get('weight') is made.weight and own.get('bias') is made.bias
    if not same or (norm is not None and norm.eps != made.eps):
        return None
    return made.result


def ready_rows(layer: nn.Module, name: str) -> Tensor | None:
    """A parameter with its rows in the order to read them, if it is ready.

    Args:
        layer: Whose parameter it is.
        name: Of the parameter.
    """
    found = _found()
    made = None if found is None else found.get((id(layer), name))
    if made is None or layer._parameters.get(name) is not made.weight:
        return None
    return made.result[0]


def _ready_or_narrow(
    layer: nn.Conv2d | nn.Linear,
) -> tuple[Tensor, Tensor | None] | None:
    return ready_weight(layer) or narrow_weight(layer)


def ready_or_own(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer, ready or cast ones where there are any."""
    return _ready_or_narrow(layer) or (layer.weight, layer.bias)


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Call a linear layer, with its ready or cast weight if there is one."""
    ready = _ready_or_narrow(layer)
    if ready is None or not is_plain_and_unseen(layer, nn.Linear):
        return layer(x)
    return F.linear(x, *ready)
