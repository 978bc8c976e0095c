"""Layer norm over the last dimension, alone or times a gate.

Shape letters: C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import autocast_dtype, choose_fused
from .shortcut import lazy_kernels, short_call, short_differentiable, watched
from .tiles import empty_gradient

_kernels = lazy_kernels('norm_triton')


def norm_forward(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the kernel, unseen by autograd; see :func:`layer_norm_gate`."""
    return _kernels().forward(x, gate, weight, bias, eps, dtype)


_layer_norm = torch.library.custom_op(
    'evmamba_mm::layer_norm', norm_forward, mutates_args=()
)


@_layer_norm.register_fake
def _(x, gate, weight, bias, eps, dtype):
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def norm_backward(
    dout: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the gate, and of weight and bias in one tensor."""
    return _kernels().backward(dout, x, gate, weight, bias, eps)


_layer_norm_backward = torch.library.custom_op(
    'evmamba_mm::layer_norm_backward', norm_backward, mutates_args=()
)
_run_backward = short_call(_layer_norm_backward, norm_backward)


@_layer_norm_backward.register_fake
def _(dout, x, gate, weight, bias, eps):
    return (
        empty_gradient(x, x),
        empty_gradient(gate, x),
        x.new_empty((2, x.shape[-1]), dtype=torch.float32),
    )


def _keep(ctx, inputs, output):
    x, gate, weight, bias, ctx.eps, _ = inputs
    ctx.save_for_backward(x, gate, weight, bias)


def _differentiate(ctx, dout):
    x, gate, weight, bias = ctx.saved_tensors
    dx, dgate, (dweight, dbias) = _run_backward(
        dout, x, gate, weight, bias, ctx.eps
    )
    return (
        dx,
        None if gate is None else dgate,
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        None,
        None,
    )


_run = short_differentiable(_layer_norm, norm_forward, _keep, _differentiate)


class _Branches(torch.autograd.Function):
    """Norm for two branches beside a third, which takes what goes in."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        normed = norm_forward(x, None, weight, bias, eps, dtype)
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        # Each branch has an output of its own, and so a gradient of its own.
        # They are views: changed in place, which the other would not know
        # of, they raise an error.
        return normed.view_as(normed), normed.view_as(normed), x

    @staticmethod
    @once_differentiable
    def backward(ctx, dleft, dright, dx):
        if dleft is None:
            dleft, dright = dright, None
        if dleft is None:
            return dx, None, None, None, None
        x, weight, bias = ctx.saved_tensors
        dx, _, (dweight, dbias) = _kernels().backward(
            dleft, x, None, weight, bias, ctx.eps, dright, dx
        )
        return (
            dx,
            dweight.to(weight.dtype),
            dbias.to(bias.dtype),
            None,
            None,
        )


def norm_twin(
    x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """The same by plain torch, in fp32 or fp64."""
    compute = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        y = F.layer_norm(
            x.to(compute),
            x.shape[-1:],
            weight.to(compute),
            bias.to(compute),
            eps,
        )
        return y if gate is None else y * F.silu(gate.to(compute))


def check_norm(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse parameters that do not fit the channels of ``x``."""
    shape = x.shape[-1:]
    if weight.shape == bias.shape == shape:
        return
    for name, parameter in (('weight', weight), ('bias', bias)):
        if parameter.shape != shape:
            raise ValueError(
                f'{name} must have shape {tuple(shape)} for x of shape '
                f'{tuple(x.shape)}, got {tuple(parameter.shape)}'
            )


def check_gated_norm(
    y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor
) -> None:
    """Refuse parameters or a gate that do not fit ``y``."""
    check_norm(y, weight, bias)
    if gate.shape != y.shape:
        raise ValueError(
            f'gate must have the shape of y, {tuple(y.shape)}, got '
            f'{tuple(gate.shape)}'
        )


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    backend: str = 'auto',
) -> Tensor:
    """Layer norm over the last dimension.

    Args:
        x: Tokens, (..., C).
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        eps: Added to the variance.
        backend: One of 'auto', 'torch', 'triton'. 'auto' asks the environment
            variable EVMAMBA_FUSED_BACKEND, then the tensor.

    Returns:
        Tensor of the shape of ``x``, in the autocast dtype if autocast is on,
        else in that of ``x``.

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve ``x``.
        ImportError: If the chosen backend is not installed.

    Source: Layer Normalization (arXiv:1607.06450).
    """
    check_norm(x, weight, bias)
    dtype = autocast_dtype(x)
    if choose_fused(x, backend) == 'triton':
        return _run(x, None, weight, bias, eps, dtype)
    return norm_twin(x, None, weight, bias, eps).to(dtype)


def layer_norm_branches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm for two branches, beside a third without it.

    The gradients of the three are added up where that of the norm is made,
    instead of in two more passes.

    Args:
        x: Tokens, (..., C).
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        eps: Added to the variance.
        backend: See :func:`layer_norm`.

    Returns:
        The result of :func:`layer_norm` twice, which may share their memory,
        and ``x``.

    Raises:
        ValueError: As :func:`layer_norm`.
        ImportError: As :func:`layer_norm`.
    """
    unseen = torch.is_grad_enabled() and not watched()
    if unseen and choose_fused(x, backend) == 'triton':
        check_norm(x, weight, bias)
        return _Branches.apply(x, weight, bias, eps, autocast_dtype(x))
    normed = layer_norm(x, weight, bias, eps, backend)
    return normed, normed, x


def layer_norm_gate(
    y: Tensor,
    gate: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    backend: str = 'auto',
) -> Tensor:
    """Layer norm over the last dimension, times ``silu(gate)``.

    Args:
        y: Tokens, (..., C).
        gate: Gate before its activation, of the shape of ``y``.
        weight: Scale of each channel, (C,).
        bias: Shift of each channel, (C,).
        eps: Added to the variance.
        backend: See :func:`layer_norm`.

    Returns:
        Tensor of the shape of ``y``, in the autocast dtype if autocast is on,
        else in that of ``y``.

    Raises:
        ValueError: As :func:`layer_norm`.
        ImportError: As :func:`layer_norm`.

    Source: VMamba (arXiv:2401.10166), the output of its mixer.
    """
    check_gated_norm(y, gate, weight, bias)
    dtype = autocast_dtype(y)
    if choose_fused(y, backend) == 'triton':
        return _run(y, gate, weight, bias, eps, dtype)
    return norm_twin(y, gate, weight, bias, eps).to(dtype)
