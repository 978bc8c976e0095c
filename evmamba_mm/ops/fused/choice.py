"""Which implementation of a fused op runs, decided in one place.

The order is: the ``backend`` argument, then the environment variable
``EVMAMBA_FUSED_BACKEND``, then the tensor's device and dtype.
"""

import functools
import importlib.util
import logging
import os

import torch
from torch import Tensor

FUSED_BACKENDS = ('auto', 'torch', 'triton')
ENVIRONMENT_VARIABLE = 'EVMAMBA_FUSED_BACKEND'
INSTALL_LINE = 'pip install triton'

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_logger = logging.getLogger('evmamba_mm')
_said: set[str] = set()


@functools.cache
def triton_installed() -> bool:
    """Whether Triton can be imported; it is not imported for that."""
    return importlib.util.find_spec('triton') is not None


def _interpreted() -> bool:
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true')


def check_fused_backend(name: str, source: str = 'backend') -> str:
    """Refuse a name that is not one of :data:`FUSED_BACKENDS`.

    Args:
        name: What is asked for.
        source: Where it comes from, for the message.

    Returns:
        The name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in FUSED_BACKENDS:
        raise ValueError(
            f'{source} must be one of {", ".join(FUSED_BACKENDS)}, '
            f'got {name!r}'
        )
    return name


def _check_triton_runs(device_type: str, dtype: torch.dtype) -> None:
    if dtype not in _KERNEL_DTYPES:
        raise ValueError(
            "backend 'triton' needs float32, float16 or bfloat16, got "
            f"{dtype}; use 'auto' or 'torch'"
        )
    if device_type != 'cuda' and not _interpreted():
        raise ValueError(
            "backend 'triton' needs CUDA tensors, or the interpreter by "
            f'TRITON_INTERPRET=1, got a tensor on {device_type}; '
            "use 'auto' or 'torch'"
        )
    if not triton_installed():
        raise ImportError(
            f"backend 'triton' needs Triton, install it by: {INSTALL_LINE}"
        )


_STORED_NAME = os.environ.encodekey(ENVIRONMENT_VARIABLE)


def _asked_by_environment() -> str:
    """What the environment variable asks for."""
    # Most often it is not there, which os.environ takes long to find out.
    stored = getattr(os.environ, '_data', None)
    if stored is not None and _STORED_NAME not in stored:
        return 'auto'
    return check_fused_backend(
        os.environ.get(ENVIRONMENT_VARIABLE) or 'auto', ENVIRONMENT_VARIABLE
    )


# The answer belongs to the program, not to the data: under torch.compile it
# is asked once, while tracing.
@torch.compiler.assume_constant_result
def _choose(backend: str, device_type: str, dtype: torch.dtype) -> str:
    name = check_fused_backend(backend)
    if name == 'auto':
        name = _asked_by_environment()
    if name != 'auto':
        if name == 'triton':
            _check_triton_runs(device_type, dtype)
        return name
    # A trace is made to count operations or to leave Python behind: both ask
    # for operations that others know.
    plain = device_type != 'cuda' or torch.jit.is_tracing()
    if plain or dtype not in _KERNEL_DTYPES:
        return 'torch'
    if triton_installed():
        return 'triton'
    if device_type not in _said:
        _said.add(device_type)
        _logger.warning(
            'the fused ops on %s run by the plain torch backend, which is '
            'slower than the kernels; for the kernels: %s',
            device_type,
            INSTALL_LINE,
        )
    return 'torch'


def choose_fused(x: Tensor, backend: str) -> str:
    """Name of the implementation that a fused op uses for a tensor.

    Args:
        x: The op's main input; its device and dtype decide.
        backend: One of :data:`FUSED_BACKENDS`; 'auto' asks the environment
            variable and then the tensor.

    Returns:
        'torch' or 'triton'.

    Raises:
        ValueError: If the name is unknown, or 'triton' is asked for where it
            cannot run.
        ImportError: If 'triton' is asked for and not installed.
    """
    return _choose(backend, x.device.type, x.dtype)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Dtype that an op of this input computes to under the current autocast.

    Args:
        x: The op's main input.

    Returns:
        The autocast dtype if autocast is on for the device of ``x``, else the
        dtype of ``x``. Double precision is never lowered, as in torch.
    """
    device_type = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return x.dtype
    return torch.get_autocast_dtype(device_type)
