"""Which implementation of the scan runs, decided in one place.

The order is: the ``backend`` argument, then the environment variable
``EVMAMBA_SCAN_BACKEND``, then the tensor's device and dtype.
"""

import logging
import os

import torch

from .scan_mamba import INSTALL_LINE, mamba_kernel_installed

BACKENDS = ('auto', 'naive', 'torch', 'mamba_ssm')
ENVIRONMENT_VARIABLE = 'EVMAMBA_SCAN_BACKEND'

_logger = logging.getLogger('evmamba_mm')
_said: set[tuple[str, str]] = set()


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


def _say_once(backend: str, device: torch.device, slow: bool) -> None:
    if (backend, device.type) in _said:
        return
    _said.add((backend, device.type))
    if slow:
        _logger.warning(
            'selective scan on %s runs by the plain torch backend, which is '
            'many times slower than a kernel; for the CUDA kernel: %s',
            device.type,
            INSTALL_LINE,
        )
    else:
        _logger.info(
            'selective scan on %s runs by backend %r', device.type, backend
        )


def choose_backend(
    backend: str, device: torch.device, dtype: torch.dtype
) -> str:
    """Name of the implementation that a scan on this device and dtype uses.

    Args:
        backend: One of :data:`BACKENDS`; 'auto' asks the environment variable
            and then the device.
        device: Where the tensors are.
        dtype: Floating dtype that is computed in.

    Returns:
        A name other than 'auto'. It is logged the first time.

    Raises:
        ValueError: If the name is unknown, or names a kernel that cannot run
            on this device or dtype.
    """
    name = _requested(backend)
    on_cuda = device.type == 'cuda'
    kernel_fits = on_cuda and dtype != torch.float64
    if name == 'mamba_ssm' and not kernel_fits:
        raise ValueError(
            "backend 'mamba_ssm' needs CUDA tensors in float32, float16 or "
            f"bfloat16, got {dtype} on {device}; use 'auto' or 'torch'"
        )
    slow = False
    if name == 'auto':
        use_kernel = kernel_fits and mamba_kernel_installed()
        name = 'mamba_ssm' if use_kernel else 'torch'
        slow = kernel_fits and not use_kernel
    _say_once(name, device, slow)
    return name
