"""Lets `torch.load` read mmengine's checkpoints.

Breaks: testing, resuming and `load_from` of an `epoch_N.pth`, with "Weights
only load failed ... mmengine.logging.history_buffer.HistoryBuffer".
Why: `torch.load` creates only objects of allowed types, since torch 2.6 by
default and in this package's loaders with any torch, and mmengine stores its
log in each checkpoint: HistoryBuffers, with numpy arrays and references to
their own methods.
The released EfficientVMamba files hold their arguments, an
`argparse.Namespace`, which is a plain container.
Fix: add exactly these types to torch's allow-list. A method is pickled as a
call of `getattr`, which would be unsafe to allow: a substitute that knows
four methods of one class replaces it.
Remove when mmengine adds its types to the allow-list itself.
"""

import argparse
import codecs
import logging
from collections.abc import Callable
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

HISTORY_METHODS = ('min', 'max', 'current', 'mean')
NUMBER_KINDS = 'biuf'
# The private module was `numpy.core` before numpy 2.
NUMPY_MODULES = ('numpy._core.multiarray', 'numpy.core.multiarray')

logger = logging.getLogger('evmamba_mm')


def apply() -> None:
    """Adds what is missing to torch's allow-list."""
    known = torch.serialization.get_safe_globals()
    missing = [item for item in _ALLOWED if item not in known]
    if missing:
        torch.serialization.add_safe_globals(missing)
        logger.debug("torch.load accepts the types of mmengine's checkpoints")


def _history_method(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in HISTORY_METHODS:
        raise UnpicklingError(
            f'a checkpoint asks for attribute {name!r} of {owner!r}; only '
            f'{HISTORY_METHODS} of HistoryBuffer are read from checkpoints'
        )
    return getattr(HistoryBuffer, name)


def _array(kind: type, shape: tuple, typecode: bytes) -> np.ndarray:
    """An empty array, whose content pickle sets next."""
    if kind is not np.ndarray:
        raise UnpicklingError(
            f'a checkpoint asks for an array of type {kind!r}'
        )
    return np.ndarray(shape, typecode)


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    if dtype.kind not in NUMBER_KINDS:
        raise UnpicklingError(
            f'a checkpoint asks for a numpy scalar of {dtype}'
        )
    return np.frombuffer(content, dtype)[0]


def _named(function: Callable, module: str, name: str) -> Callable:
    """A substitute that torch finds under the name of what it replaces."""

    def stand_in(*arguments):
        return function(*arguments)

    stand_in.__module__ = module
    stand_in.__name__ = stand_in.__qualname__ = name
    return stand_in


def _number_types() -> list[type]:
    types = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return sorted(types, key=lambda kind: kind.__name__)


_ALLOWED = [
    HistoryBuffer,
    argparse.Namespace,
    # The bytes of numpy's values; torch allows it itself from 2.6 on.
    codecs.encode,
    np.ndarray,
    np.dtype,
    *_number_types(),
    _named(_history_method, 'builtins', 'getattr'),
    *(_named(_array, name, '_reconstruct') for name in NUMPY_MODULES),
    *(_named(_scalar, name, 'scalar') for name in NUMPY_MODULES),
]
