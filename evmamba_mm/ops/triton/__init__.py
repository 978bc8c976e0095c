"""Triton kernels, one family per file, and whether Triton is installed."""

import functools
import importlib.util


@functools.cache
def triton_installed() -> bool:
    """Tell whether Triton is installed, without importing it."""
    return importlib.util.find_spec('triton') is not None
