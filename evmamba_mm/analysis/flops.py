"""FLOPs of a module from shapes alone, by the handles of mmengine's counter.

mmengine traces a real run, which for a detector at 1280x800 takes minutes and
gigabytes. Here the tensors are fake: they have shapes and no content.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from unittest import mock

import torch
from mmengine.analysis import complexity_analysis
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What an operation of mmengine's table is called once it is dispatched.
TRACED_NAMES = {
    'aten::convolution': 'aten::_convolution',
    'aten::native_batch_norm': 'aten::batch_norm',
    'aten::native_layer_norm': 'aten::layer_norm',
    'aten::native_group_norm': 'aten::group_norm',
    'aten::grid_sampler_2d': 'aten::grid_sampler',
}
# mmengine's handle of a convolution asks for this many arguments.
CONVOLUTION_ARGUMENTS = 12
FUSED_ATTENTION = (
    'aten::_scaled_dot_product_flash_attention_for_cpu',
    'aten::_scaled_dot_product_flash_attention',
    'aten::_scaled_dot_product_efficient_attention',
)
OWN = 'evmamba_mm::'


class TracedValue:
    """Answers what mmengine's handles ask of a value of a traced graph."""

    def __init__(self, value: object):
        self.value = value

    def isCompleteTensor(self) -> bool:
        """Return whether the value is a tensor."""
        return isinstance(self.value, torch.Tensor)

    def type(self) -> 'TracedValue':
        """Return what knows the sizes: the value itself."""
        return self

    def sizes(self) -> list[int]:
        """Return the tensor's shape."""
        return list(self.value.shape)

    def toIValue(self) -> object:
        """Return the value."""
        return self.value


def attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """FLOPs of the two products of an attention that is one operation.

    mmengine has no handle for it and would count nothing.
    """
    rows = query.shape[:-1].numel()
    return rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])


class DispatchedFlops(TorchDispatchMode):
    """Counts each dispatched operation by mmengine's table."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.handles = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count(func._schema.name, args, result)
        return result

    def count(self, name: str, args: tuple, result: object) -> None:
        """Add the FLOPs of one operation.

        Raises:
            ValueError: If an operation of this package has no handle.
        """
        if name in FUSED_ATTENTION:
            self.counts['attention'] += attention_flops(*args[:3])
            return
        traced = TRACED_NAMES.get(name, name)
        handle = self.handles.get(traced)
        if handle is None:
            if name.startswith(OWN):
                raise ValueError(
                    f'{name} has no handle for FLOPs: add one to '
                    'evmamba_mm/analysis/handles.py'
                )
            return
        if name == 'aten::convolution':
            args = [*args, *[None] * (CONVOLUTION_ARGUMENTS - len(args))]
        outputs = result if isinstance(result, tuple | list) else [result]
        flops = handle(
            [TracedValue(value) for value in args],
            [TracedValue(value) for value in outputs],
        )
        if isinstance(flops, Counter):
            self.counts.update(flops)
        else:
            self.counts[traced.partition('::')[2]] += flops


class PooledFlops(TorchFunctionMode):
    """Counts adaptive pooling, which may be dispatched as a plain mean."""

    def __init__(self, counts: Counter):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, '__name__', '') == 'adaptive_avg_pool2d':
            values = [*args, *(kwargs or {}).values()]
            self.counts['adaptive_avg_pool2d'] += values[0].numel()
        return func(*args, **(kwargs or {}))


def count_flops(
    run: Callable[..., object], *shapes: tuple[int, ...]
) -> Counter:
    """Count the FLOPs of `run` by operation.

    `run` is called with one float tensor a shape, none of which has content.
    A multiply-add counts as one.
    """
    counter = DispatchedFlops()
    with contextlib.ExitStack() as stack:
        # The one scan that needs no more than torch, whatever is installed.
        torch_scan = {'EVMAMBA_SCAN_BACKEND': 'torch'}
        stack.enter_context(mock.patch.dict(os.environ, torch_scan))
        stack.enter_context(torch.no_grad())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        inputs = [torch.empty(shape) for shape in shapes]
        stack.enter_context(counter)
        stack.enter_context(PooledFlops(counter.counts))
        run(*inputs)
    return counter.counts
