import importlib

import pytest
import torch


@pytest.fixture
def device():
    """Where the kernels run: a GPU, or else the CPU by the interpreter."""
    pytest.importorskip('triton', reason='triton is not installed')
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def want_programs(monkeypatch):
    """Cuts maps for the programs that so many multiprocessors want."""

    common = importlib.import_module('evmamba_mm.ops.triton.common')
    caches = [
        value
        for name in ('common', 'depthwise', 'sums')
        for value in vars(
            importlib.import_module(f'evmamba_mm.ops.triton.{name}')
        ).values()
        if hasattr(value, 'cache_clear')
    ]

    def want(multiprocessors):
        limits = common.LIMITS._replace(
            multiprocessors=multiprocessors, partial_sums=8 * multiprocessors
        )
        monkeypatch.setattr(common, 'LIMITS', limits)
        clear()

    def clear():
        for cache in caches:
            cache.cache_clear()

    yield want
    monkeypatch.undo()
    clear()
