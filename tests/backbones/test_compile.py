"""Backbones under torch.compile, which has to see them as one graph."""

import pytest
import torch

from evmamba_mm import EfficientVMamba
from evmamba_mm.ops import backend

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.mark.parametrize('gradients', [False, True])
def test_compiles_as_one_graph(gradients, monkeypatch):
    # As in a new process: what runs the scan is logged while tracing.
    monkeypatch.setattr(backend, '_said', set())
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = EfficientVMamba('atto', out_indices=(1, 3)).to(DEVICE).eval()
    image = torch.randn(1, 3, 64, 96, device=DEVICE)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.set_grad_enabled(gradients):
        for value, expected in zip(compiled(image), model(image), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
