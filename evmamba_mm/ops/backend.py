"""Which implementation of the scan runs, decided in one place.

The order is: the ``backend`` argument, then the environment variable
``EVMAMBA_SCAN_BACKEND``, then the tensor's device and dtype.
"""

import logging
import os

import torch

from . import scan_cuda
from .scan_mamba import INSTALL_LINE, mamba_kernel_installed
from .scan_numba import numba_installed

BACKENDS = ('auto', 'naive', 'torch', 'mamba_ssm', 'numba', 'cuda')
ENVIRONMENT_VARIABLE = 'EVMAMBA_SCAN_BACKEND'

_logger = logging.getLogger('evmamba_mm')
_said: set[tuple[str, str, bool]] = set()


def check_backend(name: str, source: str = 'backend') -> str:
    """Refuse a name that is not one of :data:`BACKENDS`.

    Args:
        name: What is asked for.
        source: Where it comes from, for the message.

    Returns:
        The name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in BACKENDS:
        raise ValueError(
            f'{source} must be one of {", ".join(BACKENDS)}, got {name!r}'
        )
    return name


def _requested(backend: str) -> str:
    backend = check_backend(backend)
    if backend != 'auto':
        return backend
    return check_backend(
        os.environ.get(ENVIRONMENT_VARIABLE) or 'auto', ENVIRONMENT_VARIABLE
    )


def _say_once(backend: str, device: torch.device, install: str) -> None:
    # What was said of a choice is no warning of the lack of a kernel.
    said = (backend, device.type, bool(install))
    if said in _said:
        return
    _said.add(said)
    if install:
        _logger.warning(
            'selective scan on %s runs by the plain torch backend, which is '
            'many times slower than a kernel; for the CUDA kernel: %s',
            device.type,
            install,
        )
    else:
        _logger.info(
            'selective scan on %s runs by backend %r', device.type, backend
        )


# Under torch.compile the answer is asked for once, while tracing.
@torch.compiler.assume_constant_result
def choose_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    numba_fits: bool = False,
) -> str:
    """Name of the implementation that a 1-D scan uses.

    Args:
        backend: One of :data:`BACKENDS`; 'auto' asks the environment variable
            and then the device.
        device: Where the tensors are.
        dtype: Floating dtype that is computed in.
        numba_fits: What :func:`numba_serves` says of the arguments.

    Returns:
        A name other than 'auto'. It is logged the first time.

    Raises:
        ValueError: If the name is unknown, or names a kernel that cannot run
            on this device or dtype.
    """
    name = _requested(backend)
    kernel_fits = device.type == 'cuda' and dtype != torch.float64
    if name == 'mamba_ssm' and not kernel_fits:
        raise ValueError(
            "backend 'mamba_ssm' needs CUDA tensors in float32, float16 or "
            f"bfloat16, got {dtype} on {device}; use 'auto' or 'torch'"
        )
    if name == 'cuda':
        raise ValueError(
            "backend 'cuda' scans 2-D maps only; a 1-D scan runs by "
            "'mamba_ssm', 'torch' or 'auto'"
        )
    if name == 'numba' and not numba_fits:
        raise ValueError(
            "backend 'numba' needs CPU tensors in float32, none of which asks "
            f"for a gradient, got {dtype} on {device}; use 'auto' or 'torch', "
            'or scan under torch.no_grad()'
        )
    install = ''
    if name == 'auto' and numba_fits and numba_installed():
        name = 'numba'
    elif name == 'auto':
        use_kernel = kernel_fits and mamba_kernel_installed()
        name = 'mamba_ssm' if use_kernel else 'torch'
        install = INSTALL_LINE if kernel_fits and not use_kernel else ''
    _say_once(name, device, install)
    return name


@torch.compiler.assume_constant_result
def choose_scan2d_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    states: int,
    numba_fits: bool = False,
) -> str:
    """Name of the implementation that the scan of a 2-D map uses.

    Like :func:`choose_backend`, with the fused kernel first.

    Args:
        backend: One of :data:`BACKENDS`.
        device: Where the tensors are.
        dtype: Floating dtype that is computed in.
        states: States a channel.
        numba_fits: What :func:`numba_serves` says of the arguments.

    Raises:
        ValueError: If the name is unknown, or names a kernel that cannot run
            on this device, dtype or number of states.
    """
    name = _requested(backend)
    if name not in ('auto', 'cuda'):
        return choose_backend(name, device, dtype, numba_fits)
    fits = (
        scan_cuda.device_served(device)
        and scan_cuda.dtype_served(dtype)
        and states <= scan_cuda.MAX_STATES
    )
    if name == 'cuda' and not fits:
        raise ValueError(
            "backend 'cuda' needs tensors in float32, float16 or bfloat16 on "
            f'a CUDA device from sm_80 on and at most {scan_cuda.MAX_STATES} '
            f"states, got {dtype} on {device} and {states} states; use 'auto'"
        )
    # Counters of operations read a trace, and know the 1-D scan.
    tracing = torch.jit.is_tracing()
    if name == 'cuda' or (
        fits and not tracing and scan_cuda.compiler_installed()
    ):
        _say_once('cuda', device, '')
        return 'cuda'
    if fits and not tracing and not mamba_kernel_installed():
        _say_once('torch', device, scan_cuda.INSTALL_LINE)
        return 'torch'
    return choose_backend('auto', device, dtype, numba_fits)
