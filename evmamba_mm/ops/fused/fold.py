"""A convolution and the evaluation batch norm behind it as one convolution."""

import torch
from torch import Tensor

from .choice import choose_fused
from .shortcut import lazy_kernels, short_call

_kernels = lazy_kernels('fold_triton')


def _forward(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return _kernels().fold(
        weight,
        bias,
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        eps,
        dtype,
    )


_fold = torch.library.custom_op(
    'evmamba_mm::fold_batch_norm', _forward, mutates_args=()
)


@_fold.register_fake
def _(
    weight, bias, norm_weight, norm_bias, running_mean, running_var, eps, dtype
):
    return (
        torch.empty(weight.shape, dtype=dtype, device=weight.device),
        torch.empty(weight.shape[0], dtype=dtype, device=weight.device),
    )


_run = short_call(_fold, _forward)


@torch.no_grad()
def _twin(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    compute = torch.promote_types(weight.dtype, torch.float32)
    scale = norm_weight.to(compute) * (running_var.to(compute) + eps).rsqrt()
    shift = -running_mean.to(compute)
    if bias is not None:
        shift = shift + bias.to(compute)
    shift = shift * scale + norm_bias.to(compute)
    rows = scale.view(-1, *(1,) * (weight.dim() - 1))
    folded = (weight.to(compute) * rows).to(dtype)
    return folded.contiguous(), shift.to(dtype)


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    dtype: torch.dtype,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor]:
    """Weight and bias that convolve and normalise in one step.

    It is meant for inference: no gradient goes through it.

    Args:
        weight: Weight of a convolution or linear layer, (out, ...).
        bias: Its bias, (out,), or None.
        norm_weight: Scale of the batch norm, (out,).
        norm_bias: Its shift, (out,).
        running_mean: Its mean, (out,).
        running_var: Its variance, (out,).
        eps: What it adds to the variance.
        dtype: Dtype of the results; they are computed in fp32, or in fp64 for
            a weight in fp64.
        backend: See :func:`.norm.layer_norm`; the weight decides.

    Returns:
        Weight of the shape of ``weight`` and bias of shape (out,).

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve the weight.
        ImportError: If the chosen backend is not installed.
    """
    for name, x in (
        ('bias', bias),
        ('norm_weight', norm_weight),
        ('norm_bias', norm_bias),
        ('running_mean', running_mean),
        ('running_var', running_var),
    ):
        if x is not None and x.shape != weight.shape[:1]:
            raise ValueError(
                f'{name} must have shape {tuple(weight.shape[:1])} for weight '
                f'of shape {tuple(weight.shape)}, got {tuple(x.shape)}'
            )
    fold = _run if choose_fused(weight, backend) == 'triton' else _twin
    return fold(
        weight,
        bias,
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        eps,
        dtype,
    )
