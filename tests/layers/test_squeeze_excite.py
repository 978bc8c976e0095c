import pytest
import torch

from evmamba_mm.layers import ConvSqueezeExcite, SqueezeExcite

from .equations import (
    conv_squeeze_excite,
    random_map,
    randomised,
    squeeze_excite,
)

KINDS = {
    'norm': (lambda: SqueezeExcite(16), squeeze_excite),
    'mean': (lambda: ConvSqueezeExcite(16, 2), conv_squeeze_excite),
}


@pytest.mark.parametrize('kind', KINDS)
def test_equation(kind):
    make, equation = KINDS[kind]
    se, x = randomised(make()), random_map(2, 16, 5, 6)
    torch.testing.assert_close(se(x), equation(se, x))


@pytest.mark.parametrize('kind', KINDS)
def test_the_dtype_of_the_map_is_kept(kind):
    se, x = KINDS[kind][0](), random_map(2, 16, 3, 3).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        assert se(x).dtype == torch.bfloat16
    assert se.bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('ratio', 'hidden'), [(0.125, 2), (0.2, 3), (0.01, 1)]
)
def test_hidden_width_is_rounded_down_to_at_least_one(ratio, hidden):
    se = SqueezeExcite(16, ratio)
    assert se.global_reduce.out_features == hidden
