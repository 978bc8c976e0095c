"""The fused 2-D scans as custom operators.

ES2D's op projects and scans, since both have a gradient for the feature map:
the backward of the projection adds to the scan's in place. For SS2D a linear
layer of torch projects, and the op scans.

Shape letters: B batch, H W feature map, D inner channels, K parameter sets, N
states, R dt rank, P columns of a projected position, T tiles of a sequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function

from ...tracing import has_transforms, is_traced, refuse_forward_mode
from ..geometry import AtrousGroups, CrossDirections, Geometry
from .compiler import on_device
from .host import as_parameter, run_backward, run_forward
from .projection import project_backward, project_forward
from .variant import TILE, proj_columns, sequence_length

_CROSS = CrossDirections()


def _saved_fake(u: Tensor, A_logs: Tensor, geometry: Geometry) -> Tensor:
    """States at the start of every tile, B*G*T*D*N in one dimension.

    Of several, torch.export might not ask whether one is 1.
    """
    batch, height, width, channels = u.shape
    tiles = -(-sequence_length(geometry, height, width) // TILE)
    states = channels * A_logs.shape[1]
    return A_logs.new_empty(batch * geometry.sequences * tiles * states)


def _dense_like(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in inputs
    )


def _es2d_forward(
    u: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, projection and states; the last two empty if not saved."""
    with on_device(u.device):
        proj = project_forward(u, x_proj_weight, dt_weight.shape[2], step)
        parameters = (dt_weight, dt_bias, A_logs, Ds)
        y, saved = run_forward(u, proj, *parameters, AtrousGroups(step), save)
    if saved is None:
        return y, u.new_empty(0), A_logs.new_empty(0)
    return y, proj, saved.flatten()


_es2d = torch.library.custom_op(
    'evmamba_mm::es2d_scan_cuda',
    _es2d_forward,
    mutates_args=(),
    device_types='cuda',
)


@_es2d.register_fake
def _es2d_fake(u, x_proj_weight, dt_weight, dt_bias, A_logs, Ds, step, save):
    (y,) = _dense_like(u)
    if not save:
        return y, u.new_empty(0), A_logs.new_empty(0)
    columns = proj_columns(A_logs.shape[1], dt_weight.shape[2])
    proj = u.new_empty(*u.shape[:3], columns)
    # A symbolic step is fixed: the number of groups follows from it.
    return y, proj, _saved_fake(u, A_logs, AtrousGroups(int(step)))


def _es2d_gradients(
    dy: Tensor,
    u: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    proj: Tensor,
    saved: Tensor,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = (dt_weight, dt_bias, A_logs, Ds)
    with on_device(u.device):
        du, dproj, *others = run_backward(
            dy, u, proj, *parameters, saved, AtrousGroups(step)
        )
        du, dweight = project_backward(
            dproj, u, x_proj_weight, dt_weight.shape[2], step, du_init=du
        )
    return du, dweight, *others


_es2d_backward_op = torch.library.custom_op(
    'evmamba_mm::es2d_scan_cuda_backward',
    _es2d_gradients,
    mutates_args=(),
    device_types='cuda',
)


@_es2d_backward_op.register_fake
def _es2d_backward_fake(
    dy, u, x_proj_weight, dt_weight, dt_bias, A_logs, Ds, proj, saved, step
):
    return _dense_like(u, x_proj_weight, dt_weight, dt_bias, A_logs, Ds)


def _ss2d_forward(
    u: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Output and states; the latter empty if not saved."""
    with on_device(u.device):
        y, saved = run_forward(
            u, proj, dt_weight, dt_bias, A_logs, Ds, _CROSS, save
        )
    return y, A_logs.new_empty(0) if saved is None else saved.flatten()


_ss2d = torch.library.custom_op(
    'evmamba_mm::ss2d_scan_cuda',
    _ss2d_forward,
    mutates_args=(),
    device_types='cuda',
)


@_ss2d.register_fake
def _ss2d_fake(u, proj, dt_weight, dt_bias, A_logs, Ds, save):
    (y,) = _dense_like(u)
    return y, _saved_fake(u, A_logs, _CROSS) if save else A_logs.new_empty(0)


def _ss2d_gradients(
    dy: Tensor,
    u: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = (dt_weight, dt_bias, A_logs, Ds)
    with on_device(u.device):
        return run_backward(dy, u, proj, *parameters, saved, _CROSS)


_ss2d_backward_op = torch.library.custom_op(
    'evmamba_mm::ss2d_scan_cuda_backward',
    _ss2d_gradients,
    mutates_args=(),
    device_types='cuda',
)


@_ss2d_backward_op.register_fake
def _ss2d_backward_fake(dy, u, proj, dt_weight, dt_bias, A_logs, Ds, saved):
    return _dense_like(u, proj, dt_weight, dt_bias, A_logs, Ds)


def _setup_context(ctx, inputs, output) -> None:
    tensors, ctx.numbers = inputs[:6], inputs[6:]
    _, *kept = output
    ctx.save_for_backward(*tensors, *kept)
    ctx.mark_non_differentiable(*kept)
    # Otherwise zeros would be written for the gradients of `kept`.
    ctx.set_materialize_grads(False)


def _differentiate(backward_op, ctx, dy) -> tuple[Tensor | None, ...]:
    *numbers, save = ctx.numbers
    if dy is None:
        return (None,) * (6 + len(ctx.numbers))
    if not save:
        raise RuntimeError(
            'the fused scan did not store the states that its backward '
            'needs; call it through es2d_scan or ss2d_scan'
        )
    refuse_forward_mode('the fused scan')
    gradients = backward_op(dy, *ctx.saved_tensors, *numbers)
    return *gradients, *(None for _ in ctx.numbers)


def _es2d_backward(ctx, dy, *_):
    return _differentiate(_es2d_backward_op, ctx, dy)


def _ss2d_backward(ctx, dy, *_):
    return _differentiate(_ss2d_backward_op, ctx, dy)


_es2d.register_autograd(_es2d_backward, setup_context=_setup_context)
_ss2d.register_autograd(_ss2d_backward, setup_context=_setup_context)


def _needs_gradient(*tensors: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    if any(x.requires_grad for x in tensors):
        return True
    # A transform may hide that an argument requires a gradient.
    return not torch.compiler.is_compiling() and has_transforms()


def _needs_dispatch(*tensors: Tensor) -> bool:
    """Whether something else than the kernel must see the operator.

    Otherwise a call bypasses torch's dispatcher, which costs as much time as
    the rest of the call.
    """
    if is_traced() or has_transforms() or has_torch_function(tensors):
        return True
    plain = Tensor.__torch_dispatch__
    return any(type(x).__torch_dispatch__ is not plain for x in tensors)


def es2d_scan_cuda(
    u: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    geometry: AtrousGroups,
) -> Tensor:
    """Project a feature map to dt, B and C and scan it by groups.

    The scan reads and writes positions in place: it never stores groups,
    transposed copies, padding, step sizes or states. All
    arithmetic of the scan is fp32. The backward recomputes the states from
    those at every 16th step.

    Args:
        u: Feature map (B, H, W, D) in fp32, fp16 or bf16.
        x_proj_weight: Gives dt, B and C, (K, R + 2N, D).
        dt_weight: (K, D, R).
        dt_bias: (K, D).
        A_logs: (K*D, N); :func:`numbers_served` limits N and the rank.
        Ds: (K*D,).
        geometry: Groups to scan; the arguments have passed its check.

    Returns:
        Feature map (B, H, W, D) in the dtype of ``u``.
    """
    parameters = [as_parameter(x) for x in (dt_weight, dt_bias, A_logs, Ds)]
    save = _needs_gradient(u, x_proj_weight, *parameters)
    tensors = (u.contiguous(), x_proj_weight, *parameters)
    run = _es2d if save or _needs_dispatch(*tensors) else _es2d_forward
    return run(*tensors, geometry.step, save)[0]


def ss2d_scan_cuda(
    u: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    geometry: CrossDirections,
) -> Tensor:
    """Project a feature map to dt, B and C and scan it in four directions.

    Like :func:`es2d_scan_cuda`, with one projection by torch for all
    directions.

    Args:
        u: Feature map (B, H, W, D) in fp32, fp16 or bf16.
        x_proj_weight: Gives dt, B and C, (4, R + 2N, D).
        dt_weight: (4, D, R).
        dt_bias: (4, D).
        A_logs: (4*D, N), limited likewise.
        Ds: (4*D,).
        geometry: The default directions; the arguments have passed its check.

    Returns:
        Feature map (B, H, W, D) in the dtype of ``u``.

    Raises:
        ValueError: If the geometry is not the default one.
    """
    if geometry != _CROSS:
        raise ValueError(
            f'the CUDA kernel scans {_CROSS} only, got {geometry}'
        )
    rank, rows = dt_weight.shape[2], x_proj_weight.shape[1]
    padding = proj_columns(0, rows) - rows
    # From dt, B, C to the kernel's B, C, dt and padding.
    weight = F.pad(x_proj_weight.roll(-rank, 1), (0, 0, 0, padding))
    # Outside of autocast a half precision map may meet fp32 parameters.
    proj = F.linear(u, weight.flatten(0, 1).to(u.dtype)).to(u.dtype)
    parameters = [as_parameter(x) for x in (dt_weight, dt_bias, A_logs, Ds)]
    save = _needs_gradient(u, proj, *parameters)
    tensors = (u.contiguous(), proj.contiguous(), *parameters)
    run = _ss2d if save or _needs_dispatch(*tensors) else _ss2d_forward
    return run(*tensors, save)[0]
