"""The sequences of atrous groups as single ops, for compiled graphs.

Rounding H and W up to a multiple of the step makes torch ask questions of
symbolic sizes whose answers it would fix in the graph. Inside an op it does
not ask.

Shape letters: B batch, H W feature map, C channels, p step, G = p * p groups,
L length of a sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import AtrousGroups, Geometry


@torch.library.custom_op('evmamba_mm::atrous_scan', mutates_args=())
def _scan(x: Tensor, step_size: int) -> Tensor:
    return AtrousGroups(step_size).scan(x)


@_scan.register_fake
def _scan_fake(x, step_size):
    batch, height, width, channels = x.shape
    length = -(-height // step_size) * -(-width // step_size)
    return x.new_empty(batch, step_size**2, channels, length)


@torch.library.custom_op('evmamba_mm::atrous_merge', mutates_args=())
def _merge(y: Tensor, height: int, width: int, step_size: int) -> Tensor:
    return AtrousGroups(step_size).merge(y, height, width)


@_merge.register_fake
def _merge_fake(y, height, width, step_size):
    return y.new_empty(y.shape[0], height, width, y.shape[2])


def _keep_size(ctx, inputs, output) -> None:
    x, ctx.step_size = inputs
    ctx.height, ctx.width = x.shape[1:3]


# Each is the transpose of the other: the padding is zero and is cut off.
def _scan_backward(ctx, dy):
    return _merge(dy, ctx.height, ctx.width, ctx.step_size), None


def _keep_step(ctx, inputs, output) -> None:
    ctx.step_size = inputs[3]


def _merge_backward(ctx, dx):
    return _scan(dx, ctx.step_size), None, None, None


_scan.register_autograd(_scan_backward, setup_context=_keep_size)
_merge.register_autograd(_merge_backward, setup_context=_keep_step)


@dataclass(frozen=True)
class _AtrousOps:
    """Layout of :class:`AtrousGroups` by ops."""

    step: int

    def scan(self, x: Tensor) -> Tensor:
        return _scan(x, self.step)

    def merge(self, y: Tensor, height: int, width: int) -> Tensor:
        return _merge(y, height, width, self.step)


def layout_of(geometry: Geometry, backend: str) -> Geometry | _AtrousOps:
    """Object whose ``scan`` and ``merge`` lay out the sequences.

    Args:
        geometry: Geometry of the scan.
        backend: Chosen backend; 'naive' stays pure torch, for forward-mode
            AD.

    Returns:
        The geometry itself, or its ops while a compiler traces.
    """
    if (
        torch.compiler.is_compiling()
        and backend != 'naive'
        and isinstance(geometry, AtrousGroups)
    ):
        return _AtrousOps(geometry.step)
    return geometry
