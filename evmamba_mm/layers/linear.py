"""Linear layers initialised as the released model does."""

from torch import nn


def init_linear(
    in_features: int, out_features: int, bias: bool = True
) -> nn.Linear:
    """Linear layer with truncated-normal weight (std 0.02) and zero bias."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
