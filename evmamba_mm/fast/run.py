"""Decides whether kernels or the layers run a block.

In this order: the ``fused`` argument, the environment variable
``EVMAMBA_FUSED``, tracers and transforms, the input, and the block.
"""

import functools
import importlib
import logging
import os
import weakref

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ..ops.tracing import constant_in_graphs, has_transforms, is_traced
from ..ops.triton import triton_installed
from .standard import (
    KERNEL_DTYPES,
    change_of,
    difference,
    has_hooks,
)
from .traced import autocast_dtype, traced

ENVIRONMENT_VARIABLE = 'EVMAMBA_FUSED'
INSTALL_LINE = 'pip install triton'
_WORDS = {'auto': 'auto', 'true': True, 'false': False}

_logger = logging.getLogger('evmamba_mm')
# What the log has said of modules already.
_told: weakref.WeakKeyDictionary[nn.Module, set[str]]
_told = weakref.WeakKeyDictionary()


def check_fused(fused: bool | str) -> bool | str:
    """Refuse what is not 'auto', True or False, with a ValueError."""
    is_auto = isinstance(fused, str) and fused == 'auto'
    if is_auto or fused is True or fused is False:
        return fused
    raise ValueError(f"fused must be 'auto', True or False, got {fused!r}")


# Under torch.compile the answer is asked for once, while tracing.
@constant_in_graphs
def _resolve(fused: bool | str) -> bool | str:
    """The argument, or for 'auto' what the environment variable says."""
    if fused is True or fused is False:
        return fused
    check_fused(fused)
    word = os.environ.get(ENVIRONMENT_VARIABLE, '').lower() or 'auto'
    if word not in _WORDS:
        raise ValueError(
            f'{ENVIRONMENT_VARIABLE} must be one of {", ".join(_WORDS)}, got '
            f'{word!r}'
        )
    return _WORDS[word]


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on a CPU."""
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true')


@functools.cache
def _warn_of_missing_triton() -> None:
    _logger.warning(
        'Triton is not installed: the model runs without the fused kernels, '
        'which is slower; to install it: %s',
        INSTALL_LINE,
    )


def _unserved(x: Tensor) -> str | None:
    """Why no kernel takes this input, or None."""
    if x.dtype not in KERNEL_DTYPES:
        return f'the input is in {x.dtype}'
    if type(x) not in (Tensor, nn.Parameter):
        return f'the input is a {type(x).__name__}'
    if x.numel() == 0:
        return 'the input is empty'
    if x.is_neg():
        return 'the input is a lazily negated view'
    return None


def _has_function_modes() -> bool:
    """Whether a mode wants to see each function; devices' do not."""
    modes = _get_current_function_mode_stack()
    return any(not isinstance(mode, DeviceContext) for mode in modes)


def _refuse(block: nn.Module, why: str) -> None:
    raise ValueError(
        f'fused=True or {ENVIRONMENT_VARIABLE}=true, but the fused kernels '
        f"cannot run {type(block).__name__}: {why}; use 'auto' or False"
    )


def _tell_once(block: nn.Module, why: str) -> None:
    told = _told.setdefault(block, set())
    if why in told:
        return
    told.add(why)
    _logger.info(
        '%s runs its layers, not the fused kernels: %s',
        type(block).__name__,
        why,
    )


def _where_not(x: Tensor, fused: bool | str) -> str | None:
    """Why kernels do not run on this device, or None.

    The interpreter is for tests and runs only with ``fused=True``.
    """
    if not isinstance(x, Tensor):
        return f'the input is a {type(x).__name__}'
    if not x.is_cuda and not (fused is True and interpreted()):
        return (
            f'the input is on {x.device}, and the kernels need a CUDA device '
            "(or Triton's interpreter: TRITON_INTERPRET=1)"
        )
    if not triton_installed():
        _warn_of_missing_triton()
        return f'Triton is not installed: {INSTALL_LINE}'
    return None


def run_block(
    block: nn.Module, x: Tensor, fused: bool | str = 'auto'
) -> Tensor:
    """Run a block of the backbone, with fused kernels if they support it.

    Kernels run a block if they compute exactly what it and its children do:
    types, every setting, no hook, no parametrisation, no patched forward,
    ordinary parameters. Each call checks this, so a change takes effect at
    once; the log says why, once for each block and reason. Under
    torch.compile, export, jit tracing, dispatch modes, function modes and
    function transforms the layers run.

    Args:
        block: Module of one tensor to one tensor.
        x: Its input.
        fused: 'auto', False (never) or True: raise where kernels cannot run,
            but for tracers, modes and transforms.

    Raises:
        ValueError: If ``fused`` is True and the kernels cannot run the block.
    """
    fused = _resolve(fused)
    if fused is False:
        return block(x)
    if is_traced() or has_transforms() or _has_function_modes():
        return traced(block, x)
    elsewhere = _where_not(x, fused)
    why = elsewhere or _unserved(x) or difference(block, x)
    if why is None:
        return _blocks().run(block, x, autocast_dtype(x))
    if fused is True:
        _refuse(block, why)
    if elsewhere is None:
        _tell_once(block, why)
    return block(x)


@functools.cache
def _blocks():
    # The first to import Triton, which may be absent.
    return importlib.import_module('.blocks', __package__)


def blocks_to_run(stage: nn.Module) -> list[nn.Module]:
    """The blocks of a stage, or the stage where its call would be missed.

    Args:
        stage: An ``nn.Sequential``, or what stands in its place.
    """
    if torch.compiler.is_compiling():
        # The compiler guards what it reads of a module, not what it lacks.
        forward = getattr(stage.forward, '__func__', None)
        plain = (
            type(stage) is nn.Sequential
            and forward is nn.Sequential.forward
            and not has_hooks(stage)
        )
    else:
        plain = change_of(stage, nn.Sequential) is None
    return list(stage) if plain else [stage]
