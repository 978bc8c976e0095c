"""A linear map of each pixel by the weight of the group it is scanned in.

Shape letters: B batch, H W map, D channels, P outputs, K parameter sets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..atrous import atrous_parameter_sets, check_step_size
from .choice import choose_fused
from .shortcut import lazy_kernels, short_call, short_differentiable

# A wider result would not fit into the registers of a program.
MAX_KERNEL_OUTPUTS = 256


_kernels = lazy_kernels('group_linear_triton')


def _forward(u: Tensor, weight: Tensor, step_size: int) -> Tensor:
    return _kernels().group_linear_forward(u, weight, step_size)


_linear = torch.library.custom_op(
    'evmamba_mm::group_linear', _forward, mutates_args=()
)


@_linear.register_fake
def _linear_fake(u, weight, step_size):
    return u.new_empty(*u.shape[:3], weight.shape[1])


def _gradients(
    dproj: Tensor,
    u: Tensor,
    weight: Tensor,
    step_size: int,
    du_init: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _kernels().group_linear_gradients(
        dproj, u, weight, step_size, du_init
    )


_linear_backward = torch.library.custom_op(
    'evmamba_mm::group_linear_backward', _gradients, mutates_args=()
)
_run_backward = short_call(_linear_backward, _gradients)


@_linear_backward.register_fake
def _linear_backward_fake(dproj, u, weight, step_size, du_init):
    return u.new_empty(u.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    u, weight, ctx.step_size = inputs
    ctx.save_for_backward(u, weight)


def _backward(ctx, dproj):
    du, dweight = _run_backward(dproj, *ctx.saved_tensors, ctx.step_size, None)
    return du, dweight, None


_run = short_differentiable(_linear, _forward, _setup_context, _backward)


def _offsets(step_size: int) -> list[tuple[int, int, int]]:
    """Row offset, column offset and parameter set of each group."""
    sets = atrous_parameter_sets(step_size)
    return [(g % step_size, g // step_size, k) for g, k in enumerate(sets)]


def _linear_torch(u: Tensor, weight: Tensor, step_size: int) -> Tensor:
    weight = weight.to(u.dtype)
    if step_size == 1:
        return F.linear(u, weight[0])
    p = step_size
    out = u.new_empty(*u.shape[:3], weight.shape[1])
    for i, j, k in _offsets(p):
        out[:, i::p, j::p] = F.linear(u[:, i::p, j::p], weight[k])
    return out


def _backward_torch(
    dproj: Tensor,
    u: Tensor,
    weight: Tensor,
    step_size: int,
    du_init: Tensor | None,
) -> tuple[Tensor, Tensor]:
    p = step_size
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    wide = torch.promote_types(u.dtype, torch.float32)
    dweight = torch.zeros_like(weight, dtype=wide)
    for i, j, k in _offsets(p):
        here = dproj[:, i::p, j::p].to(u.dtype)
        du[:, i::p, j::p] = here @ weight[k].to(u.dtype)
        dweight[k] += here.flatten(0, 2).mT @ u[:, i::p, j::p].flatten(0, 2)
    if du_init is not None:
        du += du_init
    return du, dweight.to(weight.dtype)


def _check(u: Tensor, weight: Tensor, step_size: int) -> None:
    check_step_size(step_size)
    if u.dim() != 4:
        raise ValueError(
            f'u must have shape (B, H, W, D), got {tuple(u.shape)}'
        )
    sets, channels = min(4, step_size**2), u.shape[3]
    shape = tuple(weight.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (sets, channels):
        raise ValueError(
            f'weight must have shape ({sets}, P, {channels}) for u of shape '
            f'{tuple(u.shape)} and step_size {step_size}, got {shape}'
        )


def _choose(u: Tensor, weight: Tensor, backend: str) -> str:
    name = choose_fused(u, backend)
    if name == 'torch' or weight.shape[1] <= MAX_KERNEL_OUTPUTS:
        return name
    if backend == 'triton':
        raise ValueError(
            f"backend 'triton' needs at most {MAX_KERNEL_OUTPUTS} outputs, "
            f"got a weight of shape {tuple(weight.shape)}; use 'auto' or "
            "'torch'"
        )
    return 'torch'


def group_linear(
    u: Tensor, weight: Tensor, step_size: int, backend: str = 'auto'
) -> Tensor:
    """Map each pixel by the weight of its group.

    The pixel at row h and column w uses the parameter set that
    :func:`evmamba_mm.ops.atrous_parameter_sets` gives to the offsets
    ``h % step_size`` and ``w % step_size``.

    Args:
        u: Map of shape (B, H, W, D), of any H and W; channels innermost in
            memory, another layout is copied.
        weight: One matrix a parameter set, (K, P, D) with
            ``K = min(4, step_size**2)``; it is cast to u's dtype.
        step_size: Distance between two pixels of a group.
        backend: See :func:`evmamba_mm.ops.fused.choice.choose_fused`.

    Returns:
        Map of shape (B, H, W, P) in u's dtype, also under autocast.

    Raises:
        ValueError: If a shape or the step is not legal, or as
            ``choose_fused``.
        ImportError: As ``choose_fused``.
    """
    _check(u, weight, step_size)
    if _choose(u, weight, backend) == 'triton':
        return _run(u, weight, step_size)
    with torch.autocast(u.device.type, enabled=False):
        return _linear_torch(u, weight, step_size)


def group_linear_backward(
    dproj: Tensor,
    u: Tensor,
    weight: Tensor,
    step_size: int,
    du_init: Tensor | None = None,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`group_linear`, for ops that contain it.

    Args:
        dproj: Gradient of the result, (B, H, W, P).
        u: As given to :func:`group_linear`.
        weight: As given to :func:`group_linear`.
        step_size: As given to :func:`group_linear`.
        du_init: What the gradient of u is added to, (B, H, W, D), or None.
        backend: See :func:`evmamba_mm.ops.fused.choice.choose_fused`.

    Returns:
        Gradients of u and of the weight, each in its tensor's dtype.

    Raises:
        ValueError: If a shape or the step is not legal, or as
            ``choose_fused``.
        ImportError: As ``choose_fused``.
    """
    _check(u, weight, step_size)
    if dproj.shape != (*u.shape[:3], weight.shape[1]):
        raise ValueError(
            f'dproj must have shape {(*u.shape[:3], weight.shape[1])} for u '
            f'of shape {tuple(u.shape)}, got {tuple(dproj.shape)}'
        )
    if du_init is not None and du_init.shape != u.shape:
        raise ValueError(
            f'du_init must have the shape of u, {tuple(u.shape)}, got '
            f'{tuple(du_init.shape)}'
        )
    if _choose(u, weight, backend) == 'triton':
        return _run_backward(dproj, u, weight, step_size, du_init)
    with torch.autocast(u.device.type, enabled=False):
        return _backward_torch(dproj, u, weight, step_size, du_init)
