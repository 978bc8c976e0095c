import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import norm_gate_linear
from evmamba_mm.ops.fused.gated_linear import _NormGateLinear

from ..scan_cases import devices, relative_error, value_and_gradients

NAMES = ('y', 'gate', 'weight', 'bias', 'linear')


def arguments(device='cpu', dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(device, dtype)

    tokens = (2, 3, 5, 24)
    return dict(
        y=normal(*tokens),
        gate=normal(*tokens),
        weight=normal(24),
        bias=normal(24),
        linear=normal(12, 24),
    )


def definition(y, gate, weight, bias, linear):
    z = F.layer_norm(y, y.shape[-1:], weight, bias, 1e-5) * F.silu(gate)
    return F.linear(z, linear)


def test_plain_torch_follows_the_definition():
    values = arguments()
    torch.testing.assert_close(
        norm_gate_linear(**values, eps=1e-5), definition(**values)
    )


def test_recomputing_gives_the_same_gradients():
    """By the kernels, which a CPU interprets."""
    device = devices()[-1]

    def recomputing(y, gate, weight, bias, linear):
        return _NormGateLinear.apply(
            y, gate, weight, bias, 1e-5, linear, torch.float32
        )

    expected = value_and_gradients(definition, arguments())
    actual = value_and_gradients(recomputing, arguments(device, torch.float32))
    assert relative_error(actual[0], expected[0]) < 1e-5
    for name in NAMES:
        error = relative_error(actual[1][name], expected[1][name])
        assert error < 1e-5, name
