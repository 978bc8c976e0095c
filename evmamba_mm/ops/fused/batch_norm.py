"""Batch norm of a channels-last map, and the activation behind it.

Shape letters: B batch, H W map, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import autocast_dtype, choose_fused
from .shortcut import lazy_kernels, short_call, short_differentiable, watched
from .tiles import empty_gradient

ACTIVATIONS = ('none', 'relu', 'gelu')


_kernels = lazy_kernels('batch_norm_triton')
_statistics_kernels = lazy_kernels('batch_statistics_triton')


def _statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a map; the running ones follow them."""
    return _statistics_kernels().statistics(
        x, running_mean, running_var, momentum
    )


# An op of its own, since one that changes its arguments has no gradient. The
# gradient by way of the statistics is part of that of the norm.
_batch_statistics = torch.library.custom_op(
    'evmamba_mm::batch_statistics',
    _statistics,
    mutates_args=('running_mean', 'running_var'),
)


@_batch_statistics.register_fake
def _(x, running_mean, running_var, momentum):
    mean = x.new_empty(x.shape[-1], dtype=torch.float32)
    return mean, torch.empty_like(mean)


def _run_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    batches: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x = x.detach()
    if watched():
        if batches is not None:
            batches.add_(1)
        return _batch_statistics(x, running_mean, running_var, momentum)
    for written in (running_mean, running_var, batches):
        # Autograd does not see the kernel write.
        if written is not None:
            torch.autograd.graph.increment_version(written)
    return _statistics_kernels().statistics(
        x, running_mean, running_var, momentum, batches
    )


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    own: bool,
    eps: float,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """Result for statistics that are fixed or the map's own."""
    return _kernels().forward(
        x, weight, bias, mean, variance, eps, activation, dtype
    )


_batch_norm_act = torch.library.custom_op(
    'evmamba_mm::batch_norm_act', _forward, mutates_args=()
)


@_batch_norm_act.register_fake
def _(x, weight, bias, mean, variance, own, eps, activation, dtype):
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    own: bool,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and those of weight and bias in one tensor."""
    return _kernels().backward(
        dy, x, weight, bias, mean, variance, own, eps, activation
    )


_batch_norm_act_backward = torch.library.custom_op(
    'evmamba_mm::batch_norm_act_backward', _backward, mutates_args=()
)
_run_backward = short_call(_batch_norm_act_backward, _backward)


@_batch_norm_act_backward.register_fake
def _(dy, x, weight, bias, mean, variance, own, eps, activation):
    sums = x.new_empty((2, x.shape[-1]), dtype=torch.float32)
    return empty_gradient(x, x), sums


def _keep(ctx, inputs, output):
    x, weight, bias, mean, variance, *ctx.options, _ = inputs
    ctx.save_for_backward(x, weight, bias, mean, variance)


def _differentiate(ctx, dy):
    tensors = ctx.saved_tensors
    dx, (dweight, dbias) = _run_backward(dy, *tensors, *ctx.options)
    _, weight, bias, _, _ = tensors
    return (
        dx,
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        *(None,) * 6,
    )


_run = short_differentiable(_batch_norm_act, _forward, _keep, _differentiate)


def _twin(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    batches: Tensor | None,
) -> Tensor:
    """The same by plain torch, in fp32 or fp64."""
    compute = torch.promote_types(x.dtype, torch.float32)
    running = (running_mean, running_var)
    # cuDNN would take what has gaps for contiguous.
    wide = [
        None if old is None else old.to(compute).contiguous()
        for old in running
    ]
    with torch.autocast(x.device.type, enabled=False):
        y = F.batch_norm(
            x.to(compute).permute(0, 3, 1, 2),
            *wide,
            weight.to(compute),
            bias.to(compute),
            training,
            momentum,
            eps,
        ).permute(0, 2, 3, 1)
        if training:
            if batches is not None:
                batches.add_(1)
            for old, new in zip(running, wide, strict=True):
                if new is not old:
                    old.copy_(new)
        if activation == 'relu':
            return F.relu(y)
        return F.gelu(y) if activation == 'gelu' else y


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    activation: str,
) -> None:
    if x.dim() != 4:
        raise ValueError(
            f'x must be a map of shape (B, H, W, C), got {tuple(x.shape)}'
        )
    for name, parameter in (
        ('weight', weight),
        ('bias', bias),
        ('running_mean', running_mean),
        ('running_var', running_var),
    ):
        if parameter is not None and parameter.shape != x.shape[3:]:
            raise ValueError(
                f'{name} must have shape {tuple(x.shape[3:])} for x of shape '
                f'{tuple(x.shape)}, got {tuple(parameter.shape)}'
            )
    missing = (running_mean is None) + (running_var is None)
    if missing == 1 or (missing and not training):
        raise ValueError(
            'running_mean and running_var must be tensors, or both None in '
            'training'
        )
    if training and x.shape[:3].numel() == 1:
        raise ValueError(
            'x must have more than one value per channel in training, got '
            f'shape {tuple(x.shape)}'
        )
    if activation not in ACTIVATIONS:
        raise ValueError(
            f'activation must be one of {", ".join(ACTIVATIONS)}, got '
            f'{activation!r}'
        )


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = 'none',
    backend: str = 'auto',
    batches: Tensor | None = None,
) -> Tensor:
    """Normalise each channel over the batch and the map, then activate.

    Nothing but ``x`` and the statistics is kept for the backward.

    Args:
        x: Map of shape (B, H, W, C), channels innermost in memory; another
            layout is copied.
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        running_mean: Mean to use in evaluation, (C,). In training it moves
            towards the mean of the batch, in place; None keeps none.
        running_var: Variance likewise, towards the unbiased one.
        training: Whether to use the statistics of the batch. Those of an
            empty one change nothing.
        momentum: Share of the batch in the new running statistics.
        eps: Added to the variance.
        activation: One of :data:`ACTIVATIONS`; 'gelu' is the exact one.
        backend: See :func:`.norm.layer_norm`.
        batches: Number of batches seen, an integer of no dimension, to which
            training adds 1 in place; None counts none.

    Returns:
        Map of the shape of ``x``, in the autocast dtype if autocast is on,
        else in that of ``x``.

    Raises:
        ValueError: If a shape or the activation is not legal, running
            statistics are missing, training meets one value per channel, or
            the backend is unknown or cannot serve ``x``.
        ImportError: If the chosen backend is not installed.

    Source: Batch Normalization (arXiv:1502.03167).
    """
    _check(x, weight, bias, running_mean, running_var, training, activation)
    dtype = autocast_dtype(x)
    if choose_fused(x, backend) == 'torch':
        return _twin(
            x, weight, bias, running_mean, running_var, training, momentum,
            eps, activation, batches,
        ).to(dtype)  # fmt: skip
    mean, variance = running_mean, running_var
    if training:
        mean, variance = _run_statistics(x, mean, variance, momentum, batches)
    return _run(
        x, weight, bias, mean, variance, training, eps, activation, dtype
    )
