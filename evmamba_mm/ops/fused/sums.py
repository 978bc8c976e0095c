"""Sums for the backward of other ops, in a fixed order.

Shape letters: C channels.
"""

import torch
from torch import Tensor

from .choice import choose_fused
from .shortcut import lazy_kernels, watched

_kernels = lazy_kernels('sums_triton')
_column_kernels = lazy_kernels('column_sums_triton')


def _by_kernel(x: Tensor) -> bool:
    return choose_fused(x, 'auto') == 'triton' and not watched()


def add_up(parts: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sum over one dimension.

    Args:
        parts: Dense tensor in fp32 of any shape.
        dim: Dimension that goes, from the front.
        dtype: Dtype of the result.

    Returns:
        The sums without that dimension.
    """
    if _by_kernel(parts):
        return _kernels().add_up(parts, dim, dtype)
    return parts.sum(dim).to(dtype)


def column_sums(x: Tensor) -> Tensor:
    """Sums of each channel over all tokens.

    Args:
        x: Tokens, (..., C).

    Returns:
        Tensor of shape (C,) in fp32, or in fp64 if ``x`` is so.
    """
    if _by_kernel(x):
        return _column_kernels().column_sums(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.sum(tuple(range(x.dim() - 1)), dtype=wide)
