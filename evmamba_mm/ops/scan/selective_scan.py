"""The selective scan of sequences: checks, the choice of backend, dtypes.

Shape letters: B batch, K groups, D inner channels of a group, N states,
L length.
"""

import contextlib

import torch
from torch import Tensor

from ...arguments import check_floats, check_switch
from .backend import choose_backend
from .mamba_scan import scan_mamba
from .naive import scan_naive
from .numba_scan import numba_serves, scan_numba
from .torch_scan import scan_torch

_SCANS = {'naive': scan_naive, 'torch': scan_torch, 'numba': scan_numba}


def _check_tensors(tensors: dict[str, Tensor | None], device) -> None:
    for name, tensor in tensors.items():
        if tensor is None and name in ('D', 'delta_bias'):
            continue
        check_floats(name, tensor)
        if tensor.device != device:
            raise ValueError(
                f'all tensors must be on one device: u is on {device}, '
                f'{name} on {tensor.device}'
            )


def _check_shapes(tensors: dict[str, Tensor | None]) -> None:
    u, A, B = tensors['u'], tensors['A'], tensors['B']
    for name, x, dims in (('u', u, 3), ('A', A, 2), ('B', B, 4)):
        if x.dim() != dims:
            raise ValueError(
                f'{name} must have {dims} dimensions, got shape '
                f'{tuple(x.shape)}'
            )
    batch, channels, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f'the {channels} channels of u must split evenly into the '
            f'{groups} groups of B'
        )
    expected = {
        'delta': (batch, channels, length),
        'A': (channels, states),
        'B': (batch, groups, states, length),
        'C': (batch, groups, states, length),
        'D': (channels,),
        'delta_bias': (channels,),
    }
    for name, shape in expected.items():
        x = tensors[name]
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(
                f'{name} must have shape {shape} for u of shape '
                f'{tuple(u.shape)}, got {tuple(x.shape)}'
            )


def _kernel_dtypes(
    tensors: dict[str, Tensor | None],
) -> dict[str, Tensor | None]:
    """Cast streams to one dtype and parameters to fp32 for the kernel."""
    streams = ('u', 'delta', 'B', 'C')
    kinds = {tensors[name].dtype for name in streams}
    stream_dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    return {
        name: None
        if x is None
        else x.to(stream_dtype if name in streams else torch.float32)
        for name, x in tensors.items()
    }


def _without_autocast(
    device: torch.device,
) -> contextlib.AbstractContextManager:
    if device.type == 'meta':
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _run(
    tensors: dict[str, Tensor | None], delta_softplus: bool, backend: str
) -> Tensor:
    """Scan checked tensors by the requested backend."""
    u = tensors['u']
    double = any(
        x is not None and x.dtype == torch.float64 for x in tensors.values()
    )
    compute = torch.float64 if double else torch.float32
    fits = numba_serves(*tensors.values())
    name = choose_backend(backend, u.device, compute, fits)
    with _without_autocast(u.device):
        if name == 'mamba_ssm':
            y = scan_mamba(
                **_kernel_dtypes(tensors), delta_softplus=delta_softplus
            )
        else:
            scan = _SCANS[name]
            wide = {
                key: None if x is None else x.to(compute)
                for key, x in tensors.items()
            }
            y = scan(**wide, delta_softplus=delta_softplus)
    return y.to(u.dtype)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = 'auto',
) -> Tensor:
    """Selective scan of Mamba with K independent groups of B and C.

    With ``d = softplus(delta + delta_bias)``, for every step t::

        h[t] = exp(d[t] * A) * h[t - 1] + d[t] * B[t] * u[t]
        y[t] = sum over states of C[t] * h[t]  +  D * u[t]

    It is computed in fp32, or in fp64 if any argument is fp64, also under
    autocast.

    Args:
        u: Input, (B, K*D, L).
        delta: Step sizes before bias and softplus, (B, K*D, L).
        A: Decay rates, (K*D, N), negative in a stable system.
        B: Input projection of each step, (B, K, N, L).
        C: Output projection of each step, (B, K, N, L).
        D: Weight of the input in the output, (K*D,).
        delta_bias: Added to ``delta``, (K*D,).
        delta_softplus: Whether ``delta`` goes through softplus.
        backend: One of 'auto', 'naive', 'torch', 'numba', 'mamba_ssm'. 'auto'
            asks the environment variable EVMAMBA_SCAN_BACKEND, then the
            device. Under forward-mode AD and torch.func.grad the naive
            scan runs.

    Returns:
        y of shape (B, K*D, L) in the dtype of ``u``.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit each other, or the
            backend is unknown or cannot serve them.
        ImportError: If the chosen kernel is not installed; it says how to.

    Source: Mamba (arXiv:2312.00752).
    """
    tensors = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    check_switch('delta_softplus', delta_softplus)
    check_floats('u', u)
    _check_tensors(tensors, u.device)
    _check_shapes(tensors)
    return _run(tensors, delta_softplus, backend)
