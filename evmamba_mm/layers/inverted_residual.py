"""MobileNetV2's block with channel attention.

Shape letters: B batch, H W map, C channels.
"""

from torch import Tensor, nn

from ..ops import autocast_dtype, gated_linear_add, scale_add
from .conv_norm import folded, pointwise_depthwise, pointwise_norm
from .drop_path import DropPath
from .plain import has_hooks
from .prepared import InferenceWeight
from .squeeze_excite import ConvSqueezeExcite


class InvertedResidual(nn.Module):
    """Inverted residual block on a channels-last map (B, H, W, C).

    Args:
        channels: C, in and out.
        expand_ratio: Inner width over C.
        squeeze_ratio: Hidden width of the channel attention over the inner
            width.
        drop_path_rate: Share of samples that skip the block while training.

    Source: MobileNetV2 (arXiv:1801.04381) and EfficientVMamba's section 4.3.
    """

    def __init__(
        self,
        channels: int,
        expand_ratio: int = 4,
        squeeze_ratio: float = 0.125,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        inner = channels * expand_ratio
        self.conv_pw = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        self.conv_dw = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )
        self.se = ConvSqueezeExcite(inner, max(1, int(inner * squeeze_ratio)))
        self.conv_pw2 = nn.Sequential(
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.drop_path = DropPath(drop_path_rate)

    def inference_weights(self) -> list[InferenceWeight]:
        """Weights that an inference reads in another form."""
        return [
            InferenceWeight(*self.conv_pw[:2]),
            InferenceWeight(*self.conv_dw[:2], narrow=False),
            InferenceWeight(*self.conv_pw2[:2]),
        ]

    def training_weights(self) -> list[nn.Module]:
        """Layers whose weights a training casts together."""
        return [self.conv_pw[0], self.conv_pw2[0]]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        y = pointwise_depthwise(x, self.conv_pw, self.conv_dw)
        conv, norm = self.conv_pw2
        scale = self.drop_path.sample_scale(x)
        ready = folded(y, conv, norm, autocast_dtype(y))
        if ready is not None and scale is None and not has_hooks(self.se):
            # The lines below in one pass: the gated map is never written.
            weight, bias = ready
            logits = self.se.gates(y)
            return gated_linear_add(x, y, logits, weight.flatten(1), bias)
        y = pointwise_norm(self.se(y), conv, norm)
        return scale_add(x, y, scale=scale)
