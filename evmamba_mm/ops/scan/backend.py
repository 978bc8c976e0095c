"""The choice among the implementations of the scan.

The ``backend`` argument comes first, then the environment variable
``EVMAMBA_SCAN_BACKEND``, then the tensor's device and dtype.
"""

import logging
import os

import torch

from ... import arguments
from ..tracing import (
    constant_in_graphs,
    has_derivative_transforms,
    has_transforms,
)
from . import cuda
from .mamba_scan import INSTALL_LINE, mamba_kernel_installed
from .numba_scan import numba_installed

BACKENDS = arguments.BACKENDS
ENVIRONMENT_VARIABLE = 'EVMAMBA_SCAN_BACKEND'

_logger = logging.getLogger('evmamba_mm')
_said: set[tuple[str, ...]] = set()


def check_backend(name: str, source: str = 'backend') -> str:
    """Refuse a name that is not one of :data:`BACKENDS`.

    Args:
        name: Name to check.
        source: Argument or variable that gave it, for the message.

    Returns:
        The name.

    Raises:
        ValueError: If the name is unknown.
    """
    arguments.check_backend(source, name)
    return name


def _requested(backend: str) -> str:
    backend = check_backend(backend)
    if backend != 'auto':
        return backend
    return check_backend(
        os.environ.get(ENVIRONMENT_VARIABLE) or 'auto', ENVIRONMENT_VARIABLE
    )


def _say_once(
    backend: str, device: torch.device, missing: str = '', reason: str = ''
) -> None:
    """Log the choice; warn if a kernel is missing or unusable.

    Args:
        backend: Name of the choice.
        device: Device of the tensors.
        missing: Install line of the missing kernel.
        reason: Why the CUDA kernel does not serve.
    """
    message = f'selective scan on {device.type}: using backend {backend!r}'
    if missing:
        message += (
            ', which is many times slower than a kernel; to install one: '
            f'{missing}'
        )
    if reason:
        message += f'; {reason}'
    is_warning = bool(missing or reason)
    choice = (backend, device.type)
    # A warning names the choice too, but does not follow from an earlier info.
    if ((message,) if is_warning else choice) in _said:
        return
    _said.update((choice, (message,)))
    _logger.log(logging.WARNING if is_warning else logging.INFO, message)


def _check_forced(
    name: str, device: torch.device, dtype: torch.dtype, numba_fits: bool
) -> None:
    """Refuse a backend that was requested by name and cannot run."""
    transformed = has_derivative_transforms()
    if transformed and name in ('mamba_ssm', 'cuda'):
        raise ValueError(
            f'backend {name!r} has no derivative for torch.func.jvp, dual '
            "numbers or torch.func.grad; use 'auto' or 'naive'"
        )
    kernel_fits = device.type == 'cuda' and dtype != torch.float64
    if name == 'mamba_ssm' and not kernel_fits:
        raise ValueError(
            "backend 'mamba_ssm' needs CUDA tensors in float32, float16 or "
            f"bfloat16, got {dtype} on {device}; use 'auto' or 'torch'"
        )
    if name == 'numba' and not (numba_fits or transformed):
        raise ValueError(
            "backend 'numba' needs CPU tensors in float32 that require no "
            f"gradient, got {dtype} on {device}; use 'auto' or 'torch', "
            'or scan under torch.no_grad()'
        )


def _choose_sequence_backend(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    numba_fits: bool,
    reason: str = '',
) -> str:
    """Choose for a 1-D scan; ``reason`` is why 'cuda' cannot run."""
    _check_forced(name, device, dtype, numba_fits)
    missing = ''
    if has_derivative_transforms():
        name, reason = 'naive', ''
    elif name == 'auto':
        kernel_fits = device.type == 'cuda' and dtype != torch.float64
        # The kernels of numba know neither gradients nor batching rules.
        if numba_fits and numba_installed() and not has_transforms():
            name = 'numba'
        elif kernel_fits and mamba_kernel_installed():
            name = 'mamba_ssm'
        else:
            name, missing = 'torch', INSTALL_LINE if kernel_fits else ''
    _say_once(name, device, missing, reason)
    return name


# Under torch.compile this runs once, while tracing.
@constant_in_graphs
def choose_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    numba_fits: bool = False,
) -> str:
    """Choose the implementation that runs a 1-D scan.

    Under forward-mode AD and torch.func.grad it is 'naive', whose every step
    has a derivative.

    Args:
        backend: One of :data:`BACKENDS`; 'auto' asks the environment variable
            and then the device.
        device: Device of the tensors.
        dtype: Floating dtype that is computed in.
        numba_fits: Result of :func:`numba_serves` for the arguments.

    Returns:
        A name other than 'auto'. It is logged the first time.

    Raises:
        ValueError: If the name is unknown, or names a kernel that cannot run
            on this device or dtype or under the active transforms.
    """
    name = _requested(backend)
    if name == 'cuda':
        raise ValueError(
            "backend 'cuda' scans feature maps only; for sequences use "
            "'mamba_ssm', 'torch' or 'auto'"
        )
    return _choose_sequence_backend(name, device, dtype, numba_fits)


def _check_cuda(
    device: torch.device,
    dtype: torch.dtype,
    sizes_fit: bool,
    geometry_fits: bool,
) -> None:
    """Refuse arguments that the requested CUDA kernel does not support."""
    if not geometry_fits:
        raise ValueError(
            "backend 'cuda' scans atrous groups and the default four "
            "directions only; use 'auto', 'mamba_ssm' or 'torch'"
        )
    if not sizes_fit:
        raise ValueError(
            "backend 'cuda' needs tensors in float32, float16 or bfloat16 on "
            f'a CUDA device from sm_80 on, at most {cuda.MAX_STATES} states a '
            f'channel and a rank of at most {cuda.MAX_RANK}, or '
            f'{cuda.MAX_RANK_OF_MANY} beyond {cuda.MANY_STATES} states, got '
            f"{dtype} on {device}; use 'auto'"
        )


@constant_in_graphs
def choose_map_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    numbers_fit: bool = True,
    geometry_fits: bool = True,
    numba_fits: bool = False,
) -> str:
    """Choose the implementation that scans a 2-D map.

    Like :func:`choose_backend`, with the fused kernel first.

    Args:
        backend: One of :data:`BACKENDS`.
        device: Device of the tensors.
        dtype: Floating dtype that is computed in.
        numbers_fit: Result of :func:`cuda.numbers_served`.
        geometry_fits: Result of :func:`cuda.geometry_served`.
        numba_fits: Result of :func:`numba_serves` for the arguments.

    Raises:
        ValueError: If the name is unknown, or names a kernel that cannot run
            on this device, dtype, number of states, rank or geometry, or
            under the active transforms.
    """
    name = _requested(backend)
    sizes_fit = (
        cuda.device_served(device) and cuda.dtype_served(dtype) and numbers_fit
    )
    if name == 'cuda':
        _check_cuda(device, dtype, sizes_fit, geometry_fits)
        _check_forced(name, device, dtype, numba_fits)
        _say_once(name, device)
        return name
    # Counters of operations read a trace, and know the 1-D scan.
    hidden = torch.jit.is_tracing() or has_derivative_transforms()
    if name != 'auto' or hidden or not sizes_fit:
        return _choose_sequence_backend(name, device, dtype, numba_fits)
    if not geometry_fits:
        reason = "backend 'cuda' does not support these directions"
        return _choose_sequence_backend(
            name, device, dtype, numba_fits, reason
        )
    if cuda.compiler_installed():
        _say_once('cuda', device)
        return 'cuda'
    if mamba_kernel_installed():
        return _choose_sequence_backend(name, device, dtype, numba_fits)
    _say_once('torch', device, cuda.INSTALL_LINE)
    return 'torch'
