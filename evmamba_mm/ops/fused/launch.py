"""How a kernel is launched: by Triton's JIT, or past it where that is known.

The JIT looks at every argument of every launch anew, which takes the CPU
longer than most of the kernels take the GPU. What it would find follows from
a few values, so that the compiled kernel is kept by these and started with
bare addresses.

What else the JIT does in a launch has no effect here. It sees whether global
variables have changed: the kernels read none. It finds the options that the
environment sets: what runs already it does not compile again for these.
"""

import functools
import logging
from collections.abc import Hashable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel


def _is_known(version: str) -> bool:
    """Whether a Triton starts a compiled kernel in the way used here.

    That is no public interface: the code of these versions was read.
    """
    numbers = tuple(int(part) for part in version.split('.')[:2])
    return (3, 6) <= numbers <= (3, 8)


# HIP has another driver.
_KNOWN = _is_known(triton.__version__) and torch.version.hip is None
_logger = logging.getLogger('evmamba_mm')

# What the JIT takes for a multiple of 16 bytes it compiles for.
_ALIGNMENT = 16
_MOST_KEPT = 4096

# A build of torch for the CPU alone has neither.
_current_device = getattr(torch._C, '_cuda_getDevice', None)
_current_stream = getattr(torch._C, '_cuda_getCurrentRawStream', None)

# A compiled kernel unloads its code when it goes, so it is kept as well.
_kept: dict[tuple, tuple[Any, Any, Any, CompiledKernel]] = {}


@functools.cache
def _say_unknown() -> None:
    _logger.info(
        'kernels are launched by the JIT of Triton %s, which takes the CPU '
        'longer than the quick way known for Triton 3.6 to 3.8',
        triton.__version__,
    )


def _followed(kernel: Any) -> bool:
    """Whether a launch has to be seen, or compiled in another way."""
    runtime = triton.knobs.runtime
    try:
        return bool(
            runtime.launch_enter_hook.calls
            or runtime.launch_exit_hook.calls
            or kernel.pre_run_hooks
            or runtime.debug
            or runtime.add_stages_inspection_hook
            or triton.knobs.compilation.instrumentation_mode
        )
    except AttributeError:
        # A profiler has put something else in the place of a chain of hooks,
        # or the kernel is one of the interpreter.
        return True


def _keep(key: tuple, made: Any) -> None:
    """Keep what the JIT has launched, if it can be started without it."""
    if not isinstance(made, CompiledKernel):
        return
    if len(_kept) >= _MOST_KEPT:
        _kept.clear()
    _kept[key] = made.run, made.function, made.packed_metadata, made


def _by_jit(
    kernel: Any,
    grid: tuple[int, int, int],
    arguments: Sequence[Any],
    warps: int,
    stages: int | None,
) -> Any:
    """What the JIT has launched: a compiled kernel, or None interpreted."""
    options = {} if stages is None else {'num_stages': stages}
    made = kernel[grid](*arguments, num_warps=warps, **options)
    if not _KNOWN and isinstance(made, CompiledKernel):
        _say_unknown()
    return made


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | None],
    numbers: tuple[int | float, ...],
    constants: tuple[Hashable, ...],
    warps: int,
    stages: int | None = None,
) -> None:
    """Launch a kernel on the device of its first tensor.

    Its parameters come in this order: pointers, numbers, constexprs. A place
    among the numbers or the constants has one type in all launches, as
    values of two types can be equal.

    Args:
        kernel: What ``triton.jit`` made.
        grid: Programs along each axis.
        tensors: What the pointers point to, None for none; the first is one.
        numbers: What the kernel gets at run time.
        constants: What it is compiled for.
        warps: Warps of a program.
        stages: Stages of its software pipeline, or None for Triton's choice.
    """
    device = tensors[0].get_device()
    on_gpu = tensors[0].is_cuda
    if on_gpu and device != _current_device():
        with torch.cuda.device(device):
            launch(kernel, grid, tensors, numbers, constants, warps, stages)
        return
    addresses, dtypes, bits, together = [], [], 0, on_gpu
    for x in tensors:
        if x is None:
            addresses.append(None)
            dtypes.append(None)
        else:
            address = x.data_ptr()
            addresses.append(address)
            dtypes.append(x.dtype)
            bits |= address
            together &= x.get_device() == device
    # What is elsewhere the JIT refuses, or finds where the GPU reads it.
    usual = together and bits % _ALIGNMENT == 0
    short = _KNOWN and usual and not _followed(kernel)
    if short:
        key = (kernel.fn, numbers, constants, warps, stages, device, *dtypes)
        kept = _kept.get(key)
        if kept is not None:
            run, function, metadata, _ = kept
            run(
                *grid, _current_stream(device), function, metadata,
                None, None, None, *addresses, *numbers, *constants,
            )  # fmt: skip
            return
    arguments = (*tensors, *numbers, *constants)
    made = _by_jit(kernel, grid, arguments, warps, stages)
    if short:
        _keep(key, made)
