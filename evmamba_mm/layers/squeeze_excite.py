"""Channel attention of the two block types.

Shape letters: B batch, H W map, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import (
    autocast_dtype,
    gated_residual,
    pooled_gates,
    pooled_layer_norms,
    scale_add,
    squeeze_excite,
    squeeze_excite_gates,
)
from .linear import init_linear
from .plain import is_plain, is_plain_and_unseen
from .prepared import InferenceWeight, ready_or_own


class SqueezeExcite(nn.Module):
    """Channel attention on a channels-last map (B, H, W, C).

    The gate is computed from the normalised map and applied to the map as it
    came. One such module serves both branches of an EVSS block.

    Args:
        channels: C.
        reduce_ratio: Hidden width over C, rounded down.

    Source: SENet (arXiv:1709.01507), in the form of the released model.
    """

    def __init__(self, channels: int, reduce_ratio: float = 0.125) -> None:
        super().__init__()
        hidden = max(1, int(channels * reduce_ratio))
        self.norm = nn.LayerNorm(channels)
        self.global_reduce = init_linear(channels, hidden)
        self.channel_select = init_linear(hidden, channels)

    def _is_plain(self) -> bool:
        layers = self.global_reduce, self.channel_select
        return all(is_plain_and_unseen(layer, nn.Linear) for layer in layers)

    def _parameters_of_gates(self) -> tuple[Tensor | float, ...]:
        norm, reduce = self.norm, self.global_reduce
        expand = self.channel_select
        linear = reduce.weight, reduce.bias, expand.weight, expand.bias
        return norm.weight, norm.bias, norm.eps, *linear

    def gates(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Gate of each map before its sigmoid, (B, C) each."""
        if self._is_plain():
            return pooled_gates(maps, *self._parameters_of_gates())
        norm, reduce = self.norm, self.global_reduce
        pooled = pooled_layer_norms(maps, norm.weight, norm.bias, norm.eps)
        pooled = pooled.to(reduce.weight.dtype)
        return self.channel_select(F.gelu(reduce(pooled))).chunk(len(maps))

    def add_to(
        self, residual: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
    ) -> Tensor:
        """The gates of both maps, then the sum.

        Args:
            residual: Map of shape (B, H, W, C).
            a: Map of this shape.
            b: Second map of this shape.
            scale: Factor of each sample of the gated maps, (B,), or None.

        Returns:
            Map ``residual + scale * (self(a) + self(b))``.
        """
        if self._is_plain():
            return gated_residual(
                residual, a, b, *self._parameters_of_gates(), scale
            )
        gate_a, gate_b = self.gates(a, b)
        return scale_add(residual, a, gate_a, b, gate_b, scale)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        gate = self.gates(x)[0].sigmoid().to(x.dtype)
        return x * gate[:, None, None]


class ConvSqueezeExcite(nn.Module):
    """Channel attention on a channels-last map (B, H, W, C).

    The form inside the inverted residual block: no normalisation, ReLU.

    Args:
        channels: C.
        hidden: Width between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.conv_expand = nn.Conv2d(hidden, channels, 1)

    def inference_weights(self) -> list[InferenceWeight]:
        """Weights that an inference reads in another form."""
        return [
            InferenceWeight(self.conv_reduce),
            InferenceWeight(self.conv_expand),
        ]

    def training_weights(self) -> list[nn.Module]:
        """Layers whose weights a training casts together."""
        return [self.conv_reduce, self.conv_expand]

    def _is_plain(self) -> bool:
        layers = self.conv_reduce, self.conv_expand
        return all(is_plain(layer, nn.Conv2d) for layer in layers)

    def _called_gates(self, x: Tensor) -> Tensor:
        """The gates by the layers themselves."""
        pooled = x.mean((1, 2))[:, :, None, None]
        return self.conv_expand(self.conv_reduce(pooled).relu()).flatten(1)

    def _parameters_of_products(self, x: Tensor) -> tuple[Tensor, ...]:
        reduce, reduce_bias = ready_or_own(self.conv_reduce)
        expand, expand_bias = ready_or_own(self.conv_expand)
        # On a 1x1 map a convolution is a product of matrices, and takes many
        # times as long as one.
        reduce = reduce.view(reduce.shape[:2])
        expand = expand.view(expand.shape[:2])
        parameters = reduce, reduce_bias, expand, expand_bias
        # The gates are as exact as their weights: these are cast where they
        # are not yet, so that what is computed again is the same.
        if torch.is_grad_enabled() and torch.is_autocast_enabled(
            x.device.type
        ):
            return tuple(p.to(autocast_dtype(x)) for p in parameters)
        return parameters

    def gates(self, x: Tensor) -> Tensor:
        """Gate of each channel of ``x`` before its sigmoid, (B, C)."""
        if not self._is_plain():
            return self._called_gates(x)
        return squeeze_excite_gates(x, *self._parameters_of_products(x))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        if not self._is_plain():
            return x * self._called_gates(x).sigmoid()[:, None, None]
        return squeeze_excite(x, *self._parameters_of_products(x))
