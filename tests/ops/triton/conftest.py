import pytest
import torch


@pytest.fixture
def device():
    """Where the kernels run: a GPU, or else the CPU by the interpreter."""
    pytest.importorskip('triton', reason='triton is not installed')
    return 'cuda' if torch.cuda.is_available() else 'cpu'
