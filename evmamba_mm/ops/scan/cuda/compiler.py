"""Compiles the CUDA sources at run time and launches the kernels.

NVIDIA's Python package ``cuda-bindings``, which torch for CUDA installs, calls
NVRTC and the driver; the user's machine needs no compiler. The compiled code
is cached on disk.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import threading
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from types import ModuleType

import torch

from . import cache

# The bindings load NVRTC of their own major version: that of torch's CUDA.
_MAJOR = (torch.version.cuda or '13').partition('.')[0]
INSTALL_LINE = f'pip install "cuda-bindings=={_MAJOR}.*"'
_SOURCES = Path(__file__).parent
# Without it a block gets 48 KB of shared memory.
_LARGE_SHARED_MEMORY = 48 * 1024

_logger = logging.getLogger('evmamba_mm')
_thread = threading.local()
_nothing = contextlib.nullcontext()


@functools.cache
def compiler_installed() -> bool:
    """Whether ``cuda-bindings`` can be found, without loading it."""
    return util.find_spec('cuda') is not None and (
        util.find_spec('cuda.bindings') is not None
    )


@functools.cache
def _bindings() -> tuple[ModuleType, ModuleType]:
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError as error:
        raise ImportError(
            "backend 'cuda' compiles its kernels through cuda-bindings, "
            f'which could not be imported: {error}. Install it with: '
            f'{INSTALL_LINE}'
        ) from error
    return driver, nvrtc


def _checked(result: tuple) -> object:
    """The value of a call to the bindings, whose status comes first."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f'{type(status).__name__}: {status.name}')
    return values[0] if len(values) == 1 else values


def _headers() -> list[Path]:
    return sorted(_SOURCES.glob('*.cuh'))


def compile_source(
    name: str, constants: Mapping[str, int], architecture: str
) -> tuple[bytes, str]:
    """Machine code of one source file, and what the compiler said.

    Args:
        name: File of this folder.
        constants: Preprocessor definitions.
        architecture: Such as ``sm_90``.

    Raises:
        RuntimeError: If it does not compile, with the compiler's log.
    """
    nvrtc = _bindings()[1]
    headers = _headers()
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            (_SOURCES / name).read_bytes(),
            name.encode(),
            len(headers),
            [header.read_bytes() for header in headers],
            [header.name.encode() for header in headers],
        )
    )
    options = [
        f'--gpu-architecture={architecture}',
        '--std=c++17',
        '--device-as-default-execution-space',
        '--ptxas-options=-v',
        *(f'-D{key}={value}' for key, value in constants.items()),
    ]
    options = [option.encode() for option in options]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    size = _checked(nvrtc.nvrtcGetProgramLogSize(program))
    log = b' ' * size
    _checked(nvrtc.nvrtcGetProgramLog(program, log))
    text = log.decode(errors='replace').strip('\0 \n')
    if int(status) != 0:
        raise RuntimeError(f'{name} did not compile: {status.name}\n{text}')
    code = b' ' * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return code, text


def _key(name: str, constants: Mapping, architecture: str) -> str:
    version = _checked(_bindings()[1].nvrtcVersion())
    digest = hashlib.sha256(
        repr((sorted(constants.items()), architecture, version)).encode()
    )
    for file in (_SOURCES / name, *_headers()):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _compiled(
    name: str, constants: Mapping[str, int], architecture: str
) -> bytes:
    """Machine code from the disk, or compiled and put there."""
    key = _key(name, constants, architecture)
    code = cache.read(key)
    if code is None:
        _logger.info('compiling %s for %s', name, architecture)
        code = compile_source(name, constants, architecture)[0]
        cache.write(key, code)
    return code


@functools.cache
def _architecture(device: int) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f'sm_{major}{minor}'


@functools.cache
def _library(
    name: str, constants: tuple[tuple[str, int], ...], architecture: str
) -> object:
    driver = _bindings()[0]
    code = _compiled(name, dict(constants), architecture)
    return _checked(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))


@functools.cache
def load_kernel(
    name: str,
    function: str,
    constants: tuple[tuple[str, int], ...],
    shared_bytes: int,
    device: int,
) -> object:
    """A kernel, ready to launch on a device.

    Args:
        name: Source file.
        function: Kernel in it.
        constants: Preprocessor definitions, as pairs.
        shared_bytes: Dynamic shared memory that it will be launched with.
        device: Index of the GPU.

    Raises:
        ImportError: If cuda-bindings is missing.
        RuntimeError: If the compiler or the driver refuses.
    """
    driver = _bindings()[0]
    library = _library(name, constants, _architecture(device))
    kernel = _checked(driver.cuLibraryGetKernel(library, function.encode()))
    if shared_bytes > _LARGE_SHARED_MEMORY:
        attribute = driver.CUfunction_attribute
        _checked(
            driver.cuKernelSetAttribute(
                attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes,
                kernel,
                driver.CUdevice(device),
            )
        )
    return driver.CUfunction(int(kernel))


def _bind_context(driver: ModuleType) -> None:
    """Give a thread the GPU's context, which it may not have yet.

    The runtime does so at a thread's first call of it; the driver does not,
    and a thread of autograd's may come here first.
    """
    if getattr(_thread, 'bound', False):
        return
    if int(_checked(driver.cuCtxGetCurrent())) == 0:
        device = driver.CUdevice(torch.cuda.current_device())
        context = _checked(driver.cuDevicePrimaryCtxRetain(device))
        _checked(driver.cuCtxSetCurrent(context))
    _thread.bound = True


def on_device(
    device: torch.device,
) -> contextlib.AbstractContextManager:
    """Context in which a GPU is the current one."""
    # A switch to what is current anyway takes the CPU far longer.
    if device.index == torch.cuda.current_device():
        return _nothing
    return torch.cuda.device(device)


def _current_stream() -> int:
    """Handle of torch's current stream of the current device."""
    device = torch.cuda.current_device()
    # What torch's own compiler calls; the public way builds an object.
    handle = getattr(torch._C, '_cuda_getCurrentRawStream', None)
    if handle is None:
        return torch.cuda.current_stream(device).cuda_stream
    return handle(device)


def launch(
    kernel: object,
    blocks: int,
    threads: int,
    shared_bytes: int,
    arguments: tuple[ctypes.Structure | ctypes._SimpleCData, ...],
) -> None:
    """Launch on torch's current stream of the current device."""
    driver = _bindings()[0]
    _bind_context(driver)
    pointers = (ctypes.c_void_p * len(arguments))(
        *map(ctypes.addressof, arguments)
    )
    _checked(
        driver.cuLaunchKernel(
            kernel,
            *(blocks, 1, 1),
            *(threads, 1, 1),
            shared_bytes,
            _current_stream(),
            ctypes.addressof(pointers),
            0,
        )
    )
