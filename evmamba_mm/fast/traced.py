"""Blocks under torch.compile: their own layers, with faster convolutions.

The compiler traces the layers and fuses them, but leaves convolutions to
cuDNN. Here the package's kernel runs the depthwise 3x3 ones with their
activations, and matrix products those whose kernel size is their stride.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .standard import KERNEL_DTYPES

_ACTIVATIONS = {F.silu: 'silu', F.gelu: 'gelu', F.relu: 'relu'}
# Older compilers do not trace through a mode.
_MODES_TRACED = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 7)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Dtype that linear maps of this input are computed in."""
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return x.dtype


def _kernels_run(x: Tensor) -> bool:
    return _MODES_TRACED and x.is_cuda


def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    input_activation: str = 'none',
) -> Tensor:
    from ..ops.triton.depthwise_op import depthwise_conv3x3_op

    x = x.permute(0, 2, 3, 1).to(autocast_dtype(x))
    y = depthwise_conv3x3_op(x, weight, bias, activation, input_activation)
    return y.permute(0, 3, 1, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution whose kernel size is its stride, as a linear map."""
    side = weight.shape[2]
    if side == 1:
        # The compiler then writes the tokens as the product reads them.
        tokens = x.permute(0, 2, 3, 1).contiguous()
    else:
        rows, columns = x.shape[2] // side, x.shape[3] // side
        x = x[:, :, : rows * side, : columns * side]
        shape = (*x.shape[:2], rows, side, columns, side)
        tokens = x.reshape(shape).permute(0, 2, 4, 1, 3, 5).flatten(3)
    y = F.linear(tokens, weight.flatten(1), bias)
    return y.permute(0, 3, 1, 2)


def _is_depthwise(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> bool:
    return (
        tuple(weight.shape) == (groups, 1, 3, 3)
        and x.shape[1] == groups
        and (stride, padding, dilation) == ((1, 1),) * 3
    )


def _is_linear(
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> bool:
    side = weight.shape[2]
    return (
        groups == 1
        and weight.shape[3] == side
        and (stride, padding, dilation) == ((side,) * 2, (0, 0), (1, 1))
    )


class _FasterConvolutions(TorchFunctionMode):
    """Replaces convolutions of 2-D maps while a block is traced.

    An activation is fused into a convolution that was traced before. The
    compiler drops the first trace unless something else, such as a hook, uses
    its result.
    """

    def __init__(self) -> None:
        super().__init__()
        # The last depthwise result, and what it was made of.
        self.result: Tensor | None = None
        self.made_of: tuple | None = None
        # The last ReLU, after and before.
        self.rectified: Tensor | None = None
        self.before: Tensor | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Of its first argument alone: exact, and not in place.
        activates = func in _ACTIVATIONS and len(args) == 1
        activates &= not kwargs.get('inplace', False)
        activates &= kwargs.get('approximate', 'none') == 'none'
        if not activates:
            self._forget(func, (*args, *kwargs.values()))
        if func is torch.conv2d and len(args) == 7 and not kwargs:
            x, weight, bias, *options = args
            if x.dim() == 4 and x.dtype in KERNEL_DTYPES:
                if _is_depthwise(x, weight, *options):
                    return self._convolve(x, weight, bias)
                if _is_linear(weight, *options):
                    return _linear(x, weight, bias)
        if activates and args[0] is self.result:
            x, weight, bias, before = self.made_of
            return _depthwise(x, weight, bias, _ACTIVATIONS[func], before)
        y = func(*args, **kwargs)
        if activates and func is F.relu and not torch.is_grad_enabled():
            self.rectified, self.before = y, args[0]
        return y

    def _forget(self, func: Any, arguments: tuple) -> None:
        """Whatever else uses a tensor may change it in place.

        A mode does not see ``torch._foreach_*``, which must not change one.
        """
        for x in arguments:
            if isinstance(x, list | tuple):
                self._forget(func, tuple(x))
            if not isinstance(x, Tensor):
                continue
            made_of = self.made_of or ()
            if x is self.result or any(x is part for part in made_of):
                self.result = None
            if func is not torch.conv2d:
                if x is self.rectified or x is self.before:
                    self.rectified = None

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        before = 'none'
        if self.rectified is not None and x is self.rectified:
            x, before = self.before, 'relu'
        self.made_of = x, weight, bias, before
        self.result = _depthwise(x, weight, bias, 'none', before)
        return self.result


def traced(block: nn.Module, x: Tensor) -> Tensor:
    """Run the modules of a block for a tracer.

    Args:
        block: Module of one tensor to one tensor.
        x: Its input.
    """
    # Other tracers, such as an export, get operations of torch alone.
    if not (torch.compiler.is_dynamo_compiling() and _kernels_run(x)):
        return block(x)
    with _FasterConvolutions():
        return block(x)
