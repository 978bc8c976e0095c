"""Layer norm of maps' tokens and their mean, without the maps between.

Shape letters: N maps, B batch, H W map, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .choice import choose_fused
from .norm import check_norm, norm_twin
from .shortcut import lazy_kernels, short_call, short_differentiable
from .tiles import empty_gradient

_kernels = lazy_kernels('pooled_norm_triton')


def _forward(
    first: Tensor,
    second: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The result, and the mean before the affine part for the backward."""
    return _kernels().forward(first, second, weight, bias, eps)


_pooled_norm = torch.library.custom_op(
    'evmamba_mm::pooled_norm', _forward, mutates_args=()
)


@_pooled_norm.register_fake
def _(first, second, weight, bias, eps):
    rows = first.shape[0] * (1 if second is None else 2)
    out = first.new_empty((rows, first.shape[3]), dtype=torch.float32)
    return out, torch.empty_like(out)


def _backward(
    dout: Tensor,
    first: Tensor,
    second: Tensor | None,
    mean: Tensor,
    weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the maps, of weight and of bias."""
    return _kernels().backward(dout, first, second, mean, weight, eps)


_pooled_norm_backward = torch.library.custom_op(
    'evmamba_mm::pooled_norm_backward', _backward, mutates_args=()
)
_run_backward = short_call(_pooled_norm_backward, _backward)


@_pooled_norm_backward.register_fake
def _(dout, first, second, mean, weight, eps):
    return (
        empty_gradient(first, first),
        empty_gradient(second, first),
        mean.new_empty(weight.shape),
        mean.new_empty(weight.shape),
    )


def _keep(ctx, inputs, output):
    first, second, weight, bias, ctx.eps = inputs
    _, mean = output
    ctx.bias_dtype = bias.dtype
    ctx.mark_non_differentiable(mean)
    # Else each backward would fill a gradient of zero for it.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(first, second, mean, weight)


def _differentiate(ctx, dout, _):
    first, second, mean, weight = ctx.saved_tensors
    dfirst, dsecond, dweight, dbias = _run_backward(
        dout, first, second, mean, weight, ctx.eps
    )
    return (
        dfirst,
        None if second is None else dsecond,
        dweight.to(weight.dtype),
        dbias.to(ctx.bias_dtype),
        None,
    )


_run = short_differentiable(_pooled_norm, _forward, _keep, _differentiate)


def check_maps(maps: Sequence[Tensor], weight: Tensor, bias: Tensor) -> None:
    """Refuse maps of no or several shapes, and parameters that do not fit."""
    if not maps:
        raise ValueError('maps must hold at least one map, got none')
    shape = maps[0].shape
    if len(shape) != 4 or shape[1] < 1 or shape[2] < 1:
        raise ValueError(
            'x must be a map of shape (B, H, W, C) with H and W of at least '
            f'1, got shape {tuple(shape)}'
        )
    for x in maps:
        if x.shape != shape:
            raise ValueError(
                f'maps must have one shape, got {tuple(shape)} and '
                f'{tuple(x.shape)}'
            )
    check_norm(maps[0], weight, bias)


def pooled_layer_norms(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    backend: str = 'auto',
) -> Tensor:
    """Mean over each of several maps of the layer norm of its tokens.

    Args:
        maps: Maps of one shape (B, H, W, C), H and W at least 1.
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        eps: Added to the variance.
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Tensor of shape (N * B, C), the first map's entries first, in fp32, or
        fp64 if a map is so, also under autocast.

    Raises:
        ValueError: If there is no map, a shape does not fit, or the backend
            is unknown or cannot serve the maps.
        ImportError: If the chosen backend is not installed.
    """
    check_maps(maps, weight, bias)
    doubles = [x for x in maps if x.dtype == torch.float64]
    wide = (doubles or maps)[0]
    if choose_fused(wide, backend) == 'torch':
        means = [
            norm_twin(x, None, weight, bias, eps).mean((1, 2)) for x in maps
        ]
    else:
        # Two maps a call, as a block with two branches has.
        seconds = [*maps[1::2], None][: (len(maps) + 1) // 2]
        pairs = zip(maps[::2], seconds, strict=True)
        means = [_run(*pair, weight, bias, eps)[0] for pair in pairs]
    return means[0] if len(means) == 1 else torch.cat(means)


def pooled_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    backend: str = 'auto',
) -> Tensor:
    """Mean over a map of the layer norm of its tokens.

    Args:
        x: Map of shape (B, H, W, C), H and W at least 1.
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        eps: Added to the variance.
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Tensor of shape (B, C) in fp32, or fp64 if ``x`` is so, also under
        autocast.

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve ``x``.
        ImportError: If the chosen backend is not installed.
    """
    return pooled_layer_norms([x], weight, bias, eps, backend)
