"""Arguments of gates of two maps and their sum, and the sum by two ops."""

from functools import partial

import torch

from evmamba_mm.ops.fused import gated_residual, pooled_gates, scale_add

from .kernel_cases import normal

EPS = 1e-3
FIXED = ('scale',)
MAPS = ('residual', 'a', 'b')
GATES = (
    'norm_weight',
    'norm_bias',
    'reduce_weight',
    'reduce_bias',
    'expand_weight',
    'expand_bias',
)
FLOAT = torch.float32

op = partial(gated_residual, eps=EPS)


def block_arguments(
    shape=(2, 5, 7, 24),
    hidden=3,
    dtype=FLOAT,
    device='cpu',
    parameters=None,
    scaled=True,
):
    parameters = parameters or torch.promote_types(dtype, FLOAT)
    make = partial(normal, dtype=parameters, device=device)
    batch, _, _, channels = shape
    maps = {
        name: normal(*shape, dtype=dtype, device=device, seed=i + 9) + i
        for i, name in enumerate(MAPS)
    }
    scale = normal(batch, dtype=dtype, device=device, seed=7)
    return maps | dict(
        norm_weight=make(channels, seed=1),
        norm_bias=make(channels, seed=2),
        reduce_weight=make(hidden, channels, seed=3) / channels**0.5,
        reduce_bias=make(hidden, seed=4),
        expand_weight=make(channels, hidden, seed=5) / hidden**0.5,
        expand_bias=make(channels, seed=6),
        scale=scale if scaled else None,
    )


def wide(arguments):
    return {
        name: None if x is None else x.double()
        for name, x in arguments.items()
    }


def two_ops(residual, a, b, scale, backend, **parameters):
    gates = pooled_gates((a, b), **parameters, eps=EPS, backend=backend)
    return scale_add(residual, a, gates[0], b, gates[1], scale, backend)
