"""Sum of a residual map and one or two gated maps.

Shape letters: B batch, H W map, C channels.
"""

import torch
from torch import Tensor

from .choice import choose_fused
from .shortcut import lazy_kernels, short_call, short_differentiable
from .tiles import empty_gradient

_kernels = lazy_kernels('scale_add_triton')


def _forward(
    residual: Tensor,
    a: Tensor,
    gate_a: Tensor | None,
    b: Tensor | None,
    gate_b: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    return _kernels().forward(residual, a, gate_a, b, gate_b, scale)


_scale_add = torch.library.custom_op(
    'evmamba_mm::scale_add', _forward, mutates_args=()
)


@_scale_add.register_fake
def _(residual, a, gate_a, b, gate_b, scale):
    dtype = torch.promote_types(residual.dtype, a.dtype)
    return torch.empty(a.shape, dtype=dtype, device=a.device)


def _backward(
    dout: Tensor,
    a: Tensor,
    gate_a: Tensor | None,
    b: Tensor | None,
    gate_b: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, of b, and of the gates that there are."""
    return _kernels().backward(dout, a, gate_a, b, gate_b, scale)


_scale_add_backward = torch.library.custom_op(
    'evmamba_mm::scale_add_backward', _backward, mutates_args=()
)
_run_backward = short_call(_scale_add_backward, _backward)


@_scale_add_backward.register_fake
def _(dout, a, gate_a, b, gate_b, scale):
    gates = (gate_a is not None) + (gate_b is not None)
    return (
        empty_gradient(a, a),
        empty_gradient(b, a),
        a.new_empty((gates, a.shape[0], a.shape[3]), dtype=torch.float32),
    )


def _keep(ctx, inputs, output):
    residual, *others = inputs
    ctx.residual_dtype = residual.dtype
    ctx.save_for_backward(*others)


def _differentiate(ctx, dout):
    a, gate_a, b, gate_b, scale = ctx.saved_tensors
    da, db, dgates = _run_backward(dout, a, gate_a, b, gate_b, scale)
    return (
        dout.to(ctx.residual_dtype),
        da,
        None if gate_a is None else dgates[0].to(gate_a.dtype),
        None if b is None else db,
        None if gate_b is None else dgates[-1].to(gate_b.dtype),
        None,
    )


_run = short_differentiable(_scale_add, _forward, _keep, _differentiate)


def _opened(x: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    if gate is None:
        return x
    return x * gate.to(dtype).sigmoid()[:, None, None, :]


def _twin(
    residual: Tensor,
    a: Tensor,
    gate_a: Tensor | None,
    b: Tensor | None,
    gate_b: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    dtype = torch.promote_types(residual.dtype, a.dtype)
    compute = torch.promote_types(dtype, torch.float32)

    update = _opened(a, gate_a, compute)
    if b is not None:
        update = update + _opened(b, gate_b, compute)
    if scale is not None:
        update = update * scale.detach().to(compute)[:, None, None, None]
    return (residual + update).to(dtype)


def check_sum(
    residual: Tensor,
    a: Tensor,
    gate_a: Tensor | None,
    b: Tensor | None,
    gate_b: Tensor | None,
    scale: Tensor | None,
) -> None:
    """Refuse maps, gates and factors that do not fit ``a``."""
    if a.dim() != 4:
        raise ValueError(
            f'a must be a map of shape (B, H, W, C), got {tuple(a.shape)}'
        )
    if gate_b is not None and b is None:
        raise ValueError('gate_b needs b, which is None')
    channels = (a.shape[0], a.shape[3])
    if (
        residual.shape == a.shape
        and (gate_a is None or gate_a.shape == channels)
        and (b is None or b.shape == a.shape)
        and (gate_b is None or gate_b.shape == channels)
        and scale is None
    ):
        return
    for name, x, shape in (
        ('residual', residual, a.shape),
        ('gate_a', gate_a, channels),
        ('b', b, a.shape),
        ('gate_b', gate_b, channels),
        ('scale', scale, a.shape[:1]),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(
                f'{name} must have shape {tuple(shape)} for a of shape '
                f'{tuple(a.shape)}, got {tuple(x.shape)}'
            )


def scale_add(
    residual: Tensor,
    a: Tensor,
    gate_a: Tensor | None = None,
    b: Tensor | None = None,
    gate_b: Tensor | None = None,
    scale: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Add one or two gated maps to a residual map.

    The result is ``residual + scale * (a * sigmoid(gate_a) + b *
    sigmoid(gate_b))``, where a missing gate or scale counts as a factor of 1.
    It is computed in fp32, or in fp64 if ``residual`` or ``a`` is fp64.

    Args:
        residual: Map of shape (B, H, W, C).
        a: Map of this shape.
        gate_a: Gate of each channel of ``a`` before its sigmoid, (B, C).
        b: Second map of this shape.
        gate_b: Gate of each channel of ``b`` before its sigmoid, (B, C).
        scale: Factor of each batch entry, as a drop of whole paths gives it,
            (B,). No gradient goes to it.
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Map in the wider dtype of ``residual`` and ``a``, also under autocast.

    Raises:
        ValueError: If a shape does not fit, ``gate_b`` comes without ``b``,
            or the backend is unknown or cannot serve the maps.
        ImportError: If the chosen backend is not installed.
    """
    check_sum(residual, a, gate_a, b, gate_b, scale)
    wide = residual if residual.dtype == torch.float64 else a
    if choose_fused(wide, backend) == 'triton':
        return _run(residual, a, gate_a, b, gate_b, scale)
    return _twin(residual, a, gate_a, b, gate_b, scale)
