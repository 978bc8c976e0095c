import torch
import torch.nn.functional as F

from evmamba_mm.ops.fused import split_linear
from evmamba_mm.ops.fused.split_linear import _SplitLinear

from ..scan_cases import relative_error, value_and_gradients


def arguments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return dict(x=x, weight=weight)


def test_halves_are_those_of_one_product():
    values = arguments()
    left, right = split_linear(**values)
    torch.testing.assert_close(
        torch.cat([left, right], -1), F.linear(**values)
    )
    assert left.is_contiguous() and right.is_contiguous()


def test_written_gradient_equals_autograds():
    def written(x, weight):
        return torch.cat(_SplitLinear.apply(x, weight, x.dtype), -1)

    expected = value_and_gradients(F.linear, arguments())
    actual = value_and_gradients(written, arguments())
    assert relative_error(actual[0], expected[0]) < 1e-12
    for name in ('x', 'weight'):
        error = relative_error(actual[1][name], expected[1][name])
        assert error < 1e-12, name
