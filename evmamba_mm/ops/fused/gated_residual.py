"""Gates of two maps and their gated sum with a residual map, as one op.

Shape letters: B batch, H W map, C channels, E hidden channels.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .choice import choose_fused
from .pooled_gates import check_linear, fits_a_program, pooled_gates
from .pooled_norm import check_maps
from .scale_add import check_sum, scale_add
from .shortcut import lazy_kernels, watched
from .tiles import empty_gradient

_gates_kernels = lazy_kernels('pooled_gates_triton')
_sum_kernels = lazy_kernels('scale_add_triton')
_backward_kernels = lazy_kernels('gated_residual_triton')
_gates_backward_kernels = lazy_kernels('gates_backward_triton')


def _backward(
    dout: Tensor,
    saved: tuple[Tensor | None, ...],
    eps: float,
    for_maps: bool,
    for_parameters: bool,
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Gradients of both maps and of the parameters, where they are wanted."""
    a, b, scale, gates, mean, hidden, *parameters = saved
    dmaps, dparameters = (None,) * 2, (None,) * len(parameters)
    if for_maps:
        dmaps = empty_gradient(a, a), empty_gradient(b, b)
    # A launch of no program is an error.
    if len(a) == 0:
        return dmaps, tuple(torch.zeros_like(x) for x in parameters)
    if not for_maps and not for_parameters:
        return dmaps, dparameters
    kernels, gates_kernels = _backward_kernels(), _gates_backward_kernels()
    weight, _, reduce_weight, _, expand_weight, _ = parameters
    rows = kernels.map_rows(dout, a, b)
    made = gates_kernels.gates_backward(
        kernels.sum_products(rows),
        rows.shape[1],
        gates,
        hidden,
        weight,
        reduce_weight,
        expand_weight,
        scale,
    )
    if for_parameters:
        dparameters = gates_kernels.parameters_backward(
            made, mean, hidden, parameters
        )
    if for_maps:
        kernels.maps_backward(dmaps, rows, made.factors, made.levels, eps)
    return dmaps, dparameters


class _GatedResidual(torch.autograd.Function):
    """Both ways of a map, by its gate and by itself, in one gradient.

    As two ops each would write a gradient of each map, and autograd would add
    them up.
    """

    @staticmethod
    def forward(ctx, residual, a, b, eps, scale, *parameters):
        weight, bias, *linear = parameters
        gates, mean, hidden = _gates_kernels().forward(
            a, b, weight, bias, eps, *linear, True
        )
        ctx.eps, ctx.residual_dtype = eps, residual.dtype
        ctx.save_for_backward(a, b, scale, gates, mean, hidden, *parameters)
        gate_a, gate_b = gates.unbind()
        return _sum_kernels().forward(residual, a, gate_a, b, gate_b, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        for_residual, *for_maps = ctx.needs_input_grad[:3]
        for_parameters = any(ctx.needs_input_grad[5:])
        dresidual = dout.to(ctx.residual_dtype) if for_residual else None
        dmaps, dparameters = _backward(
            dout, ctx.saved_tensors, ctx.eps, any(for_maps), for_parameters
        )
        return dresidual, *dmaps, None, None, *dparameters


def _by_kernels(
    residual: Tensor, a: Tensor, b: Tensor, hidden: int, backend: str
) -> bool:
    """Whether the kernels with gradients serve; without, the parts do."""
    return (
        torch.is_grad_enabled()
        and not watched()
        and torch.float64 not in (residual.dtype, a.dtype, b.dtype)
        and choose_fused(a, backend) == 'triton'
        and fits_a_program(a.shape[-1], hidden)
    )


def gated_residual(
    residual: Tensor,
    a: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    scale: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Add two maps, times gates made of themselves, to a residual map.

    What :func:`.pooled_gates.pooled_gates` of both maps and
    :func:`.scale_add.scale_add` give together.

    Args:
        residual: Map of shape (B, H, W, C), H and W at least 1.
        a: Map of this shape.
        b: Second map of this shape.
        norm_weight: Scale of the norm before the gates, (C,).
        norm_bias: Shift of the norm, (C,).
        eps: Added to the variance.
        reduce_weight: First linear map, (E, C).
        reduce_bias: (E,).
        expand_weight: Second linear map, (C, E).
        expand_bias: (C,).
        scale: Factor of each batch entry, as a drop of whole paths gives it,
            (B,). No gradient goes to it.
        backend: See :func:`.norm.layer_norm`.

    Returns:
        Map in the wider dtype of ``residual`` and ``a``, also under autocast.
        Where the kernels run, the gates are in fp32 even so.

    Raises:
        ValueError: As both of these.
        ImportError: If the chosen backend is not installed.

    Source: EfficientVMamba (arXiv:2403.09977), section 4.2.
    """
    norm = norm_weight, norm_bias
    linear = reduce_weight, reduce_bias, expand_weight, expand_bias
    if not _by_kernels(residual, a, b, len(reduce_weight), backend):
        gate_a, gate_b = pooled_gates(
            (a, b), *norm, eps, *linear, backend=backend
        )
        return scale_add(residual, a, gate_a, b, gate_b, scale, backend)
    check_maps((a, b), *norm)
    check_linear(a.shape[3], *linear)
    check_sum(residual, a, None, b, None, scale)
    return _GatedResidual.apply(residual, a, b, eps, scale, *norm, *linear)
