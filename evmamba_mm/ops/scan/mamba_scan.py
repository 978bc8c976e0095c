"""The selective scan by mamba-ssm's compiled CUDA kernel.

The kernel's extension module is called directly: the Python package around it
imports language models and their dependencies. Its interface has been the same
since mamba-ssm 1.0.

Shape letters: B batch, K groups, D inner channels of a group, N states,
L length.
"""

import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from ..tracing import refuse_forward_mode

INSTALL_LINE = (
    'MAMBA_FORCE_BUILD=TRUE pip install mamba-ssm --no-build-isolation'
)
_EXTENSION = 'selective_scan_cuda'
# Positions along L that the kernel's saved states are apart.
_KERNEL_CHUNK = 2048


@functools.cache
def mamba_kernel_installed() -> bool:
    """Whether the compiled extension can be found, without loading it."""
    return importlib.util.find_spec(_EXTENSION) is not None


def _load_kernel() -> ModuleType:
    try:
        return importlib.import_module(_EXTENSION)
    except ImportError as error:
        raise ImportError(
            "backend 'mamba_ssm' needs mamba-ssm's compiled selective scan "
            f'({_EXTENSION}), which could not be imported: {error}. Build it '
            f'with: {INSTALL_LINE}'
        ) from error


@torch.library.custom_op('evmamba_mm::selective_scan_mamba', mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Output (B, K*D, L) and the states that the kernel keeps."""
    y, states = _load_kernel().fwd(
        u, delta, A, B, C, D, None, delta_bias, delta_softplus
    )[:2]
    return y, states


@_scan.register_fake
def _scan_fake(u, delta, A, B, C, D, delta_bias, delta_softplus):
    chunks = (u.shape[2] + _KERNEL_CHUNK - 1) // _KERNEL_CHUNK
    states = A.new_empty(u.shape[0], u.shape[1], chunks, 2 * A.shape[1])
    return torch.empty_like(delta), states


@torch.library.custom_op(
    'evmamba_mm::selective_scan_mamba_backward', mutates_args=()
)
def _scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D and delta_bias (empty if absent)."""
    # The trailing arguments are the gate's input, its output, a buffer for
    # the gate's gradient, and whether to recompute the gated output.
    *grads, dD, dbias = _load_kernel().bwd(
        u,
        delta,
        A,
        B,
        C,
        D,
        None,
        delta_bias,
        dy.contiguous(),
        states,
        None,
        None,
        delta_softplus,
        False,
    )[:7]
    dD = A.new_empty(0) if D is None else dD
    dbias = A.new_empty(0) if delta_bias is None else dbias
    return *grads, dD, dbias


@_scan_backward.register_fake
def _scan_backward_fake(
    dy, u, delta, A, B, C, D, delta_bias, delta_softplus, states
):
    grads = (torch.empty_like(x) for x in (u, delta, A, B, C))
    dD = A.new_empty(0) if D is None else torch.empty_like(D)
    dbias = (
        A.new_empty(0) if delta_bias is None else torch.empty_like(delta_bias)
    )
    return *grads, dD, dbias


def _setup_context(ctx, inputs, output) -> None:
    *tensors, delta_softplus = inputs
    ctx.delta_softplus = delta_softplus
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, dy, _):
    refuse_forward_mode('evmamba_mm::selective_scan_mamba')
    u, delta, A, B, C, D, delta_bias, states = ctx.saved_tensors
    *grads, dD, dbias = _scan_backward(
        dy, u, delta, A, B, C, D, delta_bias, ctx.delta_softplus, states
    )
    dD = None if D is None else dD
    dbias = None if delta_bias is None else dbias
    return *grads, dD, dbias, None


_scan.register_autograd(_backward, setup_context=_setup_context)


def scan_mamba(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Selective scan by mamba-ssm's kernel.

    Takes checked CUDA tensors: u, delta, B and C in one of fp32, fp16 and
    bf16, the others in fp32. The kernel accumulates in fp32.
    """
    _load_kernel()
    if u.numel() == 0:
        # A grid of zero blocks is an error to CUDA.
        return u * delta
    contiguous = [x.contiguous() for x in (u, delta, A, B, C)]
    return _scan(*contiguous, D, delta_bias, delta_softplus)[0]
