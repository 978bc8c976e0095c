"""Channel attention: a map times gates made of its mean.

Shape letters: B batch, H W map, C channels, E hidden channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import autocast_dtype, choose_fused
from .shortcut import lazy_kernels, short_call, short_differentiable, watched
from .tiles import as_rows, empty_gradient

_kernels = lazy_kernels('squeeze_excite_triton')


def _product_dtype(
    x: Tensor, weight: Tensor, dtype: torch.dtype
) -> torch.dtype:
    """What the gates are computed in: at least fp32, but by weights cast."""
    if weight.dtype == dtype:
        return dtype
    return torch.promote_types(x.dtype, torch.float32)


def _forward(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result; then mean, hidden channels and gates for the backward."""
    inner = _product_dtype(x, reduce_weight, dtype)
    return _kernels().forward(
        x, reduce_weight, reduce_bias, expand_weight, expand_bias, dtype, inner
    )


_squeeze_excite = torch.library.custom_op(
    'evmamba_mm::squeeze_excite', _forward, mutates_args=()
)


@_squeeze_excite.register_fake
def _(x, reduce_weight, reduce_bias, expand_weight, expand_bias, dtype):
    hidden, channels = reduce_weight.shape
    inner = _product_dtype(x, reduce_weight, dtype)
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        x.new_empty((x.shape[0], channels), dtype=inner),
        x.new_empty((x.shape[0], hidden), dtype=inner),
        x.new_empty((x.shape[0], channels), dtype=inner),
    )


def _backward(
    dout: Tensor,
    x: Tensor,
    pooled: Tensor,
    hidden: Tensor,
    logits: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, and of each product's weight and bias."""
    return _kernels().backward(
        dout, x, pooled, hidden, logits, reduce_weight, expand_weight
    )


_squeeze_excite_backward = torch.library.custom_op(
    'evmamba_mm::squeeze_excite_backward', _backward, mutates_args=()
)
_run_backward = short_call(_squeeze_excite_backward, _backward)


@_squeeze_excite_backward.register_fake
def _(dout, x, pooled, hidden, logits, reduce_weight, expand_weight):
    return (
        empty_gradient(x, x),
        pooled.new_empty(reduce_weight.shape),
        pooled.new_empty(reduce_weight.shape[:1]),
        pooled.new_empty(expand_weight.shape),
        pooled.new_empty(expand_weight.shape[:1]),
    )


def _keep(ctx, inputs, output):
    x, reduce_weight, reduce_bias, expand_weight, expand_bias, _ = inputs
    _, *inner = output
    ctx.bias_dtypes = reduce_bias.dtype, expand_bias.dtype
    ctx.mark_non_differentiable(*inner)
    # Else each backward would fill gradients of zero for them.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *inner, reduce_weight, expand_weight)


def _differentiate(ctx, dout, *_):
    *saved, reduce_weight, expand_weight = ctx.saved_tensors
    dx, dreduce, dreduce_bias, dexpand, dexpand_bias = _run_backward(
        dout, *saved, reduce_weight, expand_weight
    )
    reduce_bias_dtype, expand_bias_dtype = ctx.bias_dtypes
    return (
        dx,
        dreduce.to(reduce_weight.dtype),
        dreduce_bias.to(reduce_bias_dtype),
        dexpand.to(expand_weight.dtype),
        dexpand_bias.to(expand_bias_dtype),
        None,
    )


_run = short_differentiable(_squeeze_excite, _forward, _keep, _differentiate)


def _gates_twin(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    compute: torch.dtype,
) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        pooled = F.adaptive_avg_pool2d(x.to(wide).permute(0, 3, 1, 2), 1)
        pooled = pooled.to(compute)
        hidden = torch.addmm(
            reduce_bias.to(compute),
            pooled.flatten(1),
            reduce_weight.to(compute).t(),
        )
        return torch.addmm(
            expand_bias.to(compute),
            hidden.relu(),
            expand_weight.to(compute).t(),
        )


def _twin(x: Tensor, *parameters: Tensor, dtype: torch.dtype) -> Tensor:
    compute = _product_dtype(x, parameters[0], dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    gate = _gates_twin(x, *parameters, compute).to(wide).sigmoid()
    return (x.to(wide) * gate[:, None, None]).to(dtype)


def _check(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
) -> None:
    if x.dim() != 4 or x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(
            'x must be a map of shape (B, H, W, C) with H and W of at least '
            f'1, got shape {tuple(x.shape)}'
        )
    channels, hidden = x.shape[3], len(reduce_bias)
    for name, parameter, shape in (
        ('reduce_bias', reduce_bias, (hidden,)),
        ('reduce_weight', reduce_weight, (hidden, channels)),
        ('expand_weight', expand_weight, (channels, hidden)),
        ('expand_bias', expand_bias, (channels,)),
    ):
        if parameter.shape != shape:
            raise ValueError(
                f'{name} must have shape {shape} for x of shape '
                f'{tuple(x.shape)} and {hidden} hidden channels, got '
                f'{tuple(parameter.shape)}'
            )


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    backend: str = 'auto',
) -> Tensor:
    """Scale the channels of a map by gates made of its mean.

    The gates are ``sigmoid(expand(relu(reduce(mean))))`` with the two affine
    maps given. They are computed in fp32, or in fp64 if ``x`` is fp64, also
    under autocast; with weights in the dtype of the result, in that.

    Args:
        x: Map of shape (B, H, W, C), H and W at least 1.
        reduce_weight: From channels to hidden channels, (E, C).
        reduce_bias: Shift of each hidden channel, (E,).
        expand_weight: From hidden channels to channels, (C, E).
        expand_bias: Shift of each gate, (C,).
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Map of the shape of ``x``, in the autocast dtype if autocast is on,
        else in the dtype of ``x``.

    Raises:
        ValueError: If a shape does not fit, or the backend is unknown or
            cannot serve ``x``.
        ImportError: If the chosen backend is not installed.

    Source: SENet (arXiv:1709.01507).
    """
    parameters = reduce_weight, reduce_bias, expand_weight, expand_bias
    _check(x, *parameters)
    dtype = autocast_dtype(x)
    if choose_fused(x, backend) == 'triton':
        return _run(x, *parameters, dtype)[0]
    return _twin(x, *parameters, dtype=dtype)


def squeeze_excite_gates(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    backend: str = 'auto',
) -> Tensor:
    """Gates of :func:`squeeze_excite` before their sigmoid.

    The kernel is for inference; where gradients are on, and for what watches
    the operations, torch computes the gates.

    Args:
        x: As there, and so are the other arguments.
        reduce_weight: As there.
        reduce_bias: As there.
        expand_weight: As there.
        expand_bias: As there.
        backend: As there.

    Returns:
        Gates (B, C) in the dtype of ``reduce_weight`` where the kernel runs,
        else in fp32, or in fp64 if ``x`` is fp64.

    Raises:
        ValueError: As there.
        ImportError: As there.
    """
    parameters = reduce_weight, reduce_bias, expand_weight, expand_bias
    _check(x, *parameters)
    kernels = choose_fused(x, backend) == 'triton'
    if not kernels or torch.is_grad_enabled() or watched():
        wide = torch.promote_types(x.dtype, torch.float32)
        return _gates_twin(x, *parameters, wide)
    batch, height, width, channels = x.shape
    rows = as_rows(x, (batch, height * width, channels))
    return _kernels().gates(rows, *parameters, reduce_weight.dtype)[-1]
