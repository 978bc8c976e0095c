import pytest
import torch

from evmamba_mm.ops import cross_merge, cross_scan


def test_order_of_the_four_directions():
    x = torch.arange(6.0).view(1, 2, 3, 1)
    assert cross_scan(x)[0, :, 0].int().tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (13, 5), (8, 6)], ids=str)
def test_merge_sums_the_four_directions(size):
    x = torch.randn(2, *size, 3)
    merged = cross_merge(cross_scan(x), *size)
    torch.testing.assert_close(merged, 4 * x)


def test_gradients():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 4, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cross_scan, (x,))
    assert torch.autograd.gradcheck(lambda t: cross_merge(t, 3, 2), (y,))


def test_illegal_shapes_are_named():
    with pytest.raises(ValueError, match=r'\(B, H, W, C\)'):
        cross_scan(torch.zeros(2, 0, 3, 1))
    with pytest.raises(ValueError, match=r'\(B, 4, C, 6\)'):
        cross_merge(torch.zeros(1, 3, 2, 6), 2, 3)
