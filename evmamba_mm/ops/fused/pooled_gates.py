"""Channel attention's gates of maps, from a layer norm of their tokens.

Shape letters: N maps, B batch, H W map, C channels, E hidden channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import choose_fused
from .pooled_norm import check_maps, pooled_layer_norms
from .shortcut import lazy_kernels, watched

# More weights would not fit into the registers of a program.
MAX_KERNEL_WEIGHTS = 8192


_kernels = lazy_kernels('pooled_gates_triton')


def fits_a_program(channels: int, hidden: int) -> bool:
    """Whether one program can hold a weight, padded to powers of two."""
    bits = max(4, (channels - 1).bit_length()) + (hidden - 1).bit_length()
    return 1 << bits <= MAX_KERNEL_WEIGHTS


def check_linear(
    channels: int,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
) -> None:
    """Refuse linear maps that do not fit the channels or each other."""
    hidden = reduce_weight.shape[0]
    for name, parameter, shape in (
        ('reduce_weight', reduce_weight, (hidden, channels)),
        ('reduce_bias', reduce_bias, (hidden,)),
        ('expand_weight', expand_weight, (channels, hidden)),
        ('expand_bias', expand_bias, (channels,)),
    ):
        if parameter.shape != shape:
            raise ValueError(
                f'{name} must have shape {shape} for maps of {channels} '
                f'channels and {hidden} hidden ones, got '
                f'{tuple(parameter.shape)}'
            )


def _composed(
    pooled: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
) -> Tensor:
    """Gates of means (N * B, C) by plain torch."""
    pooled = pooled.to(reduce_weight.dtype)
    hidden = F.gelu(F.linear(pooled, reduce_weight, reduce_bias))
    return F.linear(hidden, expand_weight, expand_bias)


def pooled_gates(
    maps: Sequence[Tensor],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    backend: str = 'auto',
) -> tuple[Tensor, ...]:
    """Gate of each channel of several maps, before its sigmoid.

    The mean over each map of the layer norm of its tokens, then two linear
    maps with the exact GELU between.

    Args:
        maps: Maps of one shape (B, H, W, C), H and W at least 1.
        norm_weight: Scale of the norm, (C,).
        norm_bias: Shift of the norm, (C,).
        eps: Added to the variance.
        reduce_weight: First linear map, (E, C).
        reduce_bias: (E,).
        expand_weight: Second linear map, (C, E).
        expand_bias: (C,).
        backend: See :func:`.norm.layer_norm`.

    Returns:
        One tensor a map, (B, C): in fp32 where one kernel computes both
        linear maps, which is without gradients; else in the dtype of the
        linear maps, the autocast dtype if autocast is on.

    Raises:
        ValueError: As :func:`.pooled_norm.pooled_layer_norms`.
        ImportError: If the chosen backend is not installed.

    Source: SENet (arXiv:1709.01507), in the form of the released model of
    EfficientVMamba (arXiv:2403.09977).
    """
    check_maps(maps, norm_weight, norm_bias)
    linear = (reduce_weight, reduce_bias, expand_weight, expand_bias)
    check_linear(maps[0].shape[3], *linear)
    first, second = maps[0], maps[1] if len(maps) == 2 else None
    composed = (
        torch.is_grad_enabled()
        or len(maps) > 2
        or watched()
        or any(x.dtype == torch.float64 for x in maps)
        or not fits_a_program(first.shape[3], reduce_weight.shape[0])
    )
    if composed or choose_fused(first, backend) == 'torch':
        pooled = pooled_layer_norms(maps, norm_weight, norm_bias, eps, backend)
        return _composed(pooled, *linear).chunk(len(maps))
    out, _, _ = _kernels().forward(
        first, second, norm_weight, norm_bias, eps, *linear
    )
    return out.unbind()
