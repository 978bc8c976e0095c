"""The fused scan alone, of a feature map with its dt, B and C.

Compare it with kernels that scan prepared sequences.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import AtrousGroups
from ..ops.scan.cuda import proj_columns
from ..ops.scan.cuda.host import run_backward, run_forward
from ..ops.scan.naive import scan_naive

KIND = 'scan2d'
BACKENDS = ('naive', 'cuda')


def arguments(map_arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the scan with projections in place of their weight."""
    x = map_arguments['x']
    states = map_arguments['A_logs'].shape[1]
    rank = map_arguments['dt_projs_weight'].shape[2]
    columns = proj_columns(states, rank)
    return dict(
        x=x,
        proj=torch.randn(*x.shape[:3], columns, device=x.device),
        **{
            name: map_arguments[name]
            for name in ('dt_projs_weight', 'dt_projs_bias', 'A_logs', 'Ds')
        },
    )


def naive(
    x: Tensor,
    proj: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    step: int,
) -> Tensor:
    """The groups one by one, by the equations."""
    geometry = AtrousGroups(step)
    sets = list(geometry.parameter_sets)
    states, channels = A_logs.shape[1], x.shape[3]
    rank = dt_projs_weight.shape[2]
    u, rows = geometry.scan(x), geometry.scan(proj)
    B, C = rows[:, :, :states], rows[:, :, states : 2 * states]
    dt = rows[:, :, 2 * states : 2 * states + rank]
    delta = torch.einsum('bgrl,gdr->bgdl', dt, dt_projs_weight[sets])
    A, skip = (p.unflatten(0, (-1, channels))[sets] for p in (A_logs, Ds))
    y = scan_naive(
        u.flatten(1, 2),
        delta.flatten(1, 2),
        -A.flatten(0, 1).exp(),
        B,
        C,
        skip.flatten(),
        dt_projs_bias[sets].flatten(),
        True,
    )
    return geometry.merge(y.view_as(u), *x.shape[1:3])


class _Scan(torch.autograd.Function):
    """The kernels by themselves: the package's op projects as well."""

    @staticmethod
    def forward(ctx, *arguments):
        *tensors, ctx.geometry = arguments
        save = any(ctx.needs_input_grad)
        y, saved = run_forward(*tensors, ctx.geometry, save)
        ctx.save_for_backward(*tensors, saved)
        return y

    @staticmethod
    def backward(ctx, dy):
        *tensors, saved = ctx.saved_tensors
        return *run_backward(dy, *tensors, saved, ctx.geometry), None


def called(backend: str, step: int) -> Callable[..., Tensor]:
    """Return the scan by a backend, a function of :func:`arguments`."""
    if backend == 'naive':
        return functools.partial(naive, step=step)

    def cuda(x, proj, dt_projs_weight, dt_projs_bias, A_logs, Ds):
        return _Scan.apply(
            *(x, proj.to(x.dtype), dt_projs_weight, dt_projs_bias, A_logs),
            *(Ds, AtrousGroups(step)),
        )

    return cuda
