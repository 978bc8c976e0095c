import pytest
import torch


@pytest.fixture
def device():
    """Where the kernels run: a GPU, or else the CPU by the interpreter."""
    pytest.importorskip('triton', reason='triton is not installed')
    return 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture(autouse=True)
def no_backend_from_outside(monkeypatch):
    monkeypatch.delenv('EVMAMBA_FUSED_BACKEND', raising=False)
