"""The compiler takes versions as constants."""

import torch
from mmengine.runner.amp import autocast

import evmamba_mm  # noqa: F401  makes the fixes


def scaled(x):
    with autocast(device_type='cpu', dtype=torch.bfloat16):
        return x @ x


def test_mixed_precision_is_traced_whole():
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(scaled, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), scaled(x))
