import pytest
import torch

import evmamba_mm.fast.run as fast_run

from .changes import DEVICE


class Kernels:
    """The blocks that ran by kernels."""

    def __init__(self):
        self.blocks = []

    def __len__(self):
        return len(self.blocks)


@pytest.fixture
def kernels(monkeypatch):
    """Lets 'auto' take kernels, and counts the blocks that they run.

    On a GPU they run there. Elsewhere Triton's interpreter stands in for it,
    which 'auto' does not take by itself.
    """
    pytest.importorskip('triton', reason='triton is not installed')
    if DEVICE == 'cpu':
        where_not = fast_run._where_not
        monkeypatch.setattr(
            fast_run, '_where_not', lambda x, fused: where_not(x, True)
        )
    monkeypatch.delenv(fast_run.ENVIRONMENT_VARIABLE, raising=False)
    # Convolutions in TF32 would hide what differs.
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    from evmamba_mm.fast import blocks

    counted = Kernels()
    run = blocks.run

    def counting(block, x, dtype):
        counted.blocks.append(block)
        return run(block, x, dtype)

    monkeypatch.setattr(blocks, 'run', counting)
    return counted
