"""What ES2D and SS2D have in common: everything but the order of the scan.

Shape letters: B batch, H W map, C channels, D inner channels, K parameter
sets, N states, R dt rank.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import (
    RowLayout,
    check_backend,
    norm_gate_linear,
    scan_row_layout,
    split_linear,
)
from .conv_norm import depthwise_conv
from .linear import init_linear
from .plain import is_plain
from .prepared import (
    InferenceRows,
    InferenceWeight,
    ready_or_own,
    ready_rows,
)


def initial_dt_bias(shape: tuple[int, ...]) -> Tensor:
    """Biases whose softplus is log-uniform between 0.001 and 0.1."""
    low, high = math.log(0.001), math.log(0.1)
    dt = torch.exp(torch.empty(shape).uniform_(low, high)).clamp(min=1e-4)
    # Inverse of softplus.
    return dt + torch.log(-torch.expm1(-dt))


class ScanMixer(nn.Module):
    """Gated token mixer around a 2-D selective scan, channels last.

    Project to a value and a gate, depthwise 3x3 and SiLU on the value, scan,
    LayerNorm, gate, project back. A subclass says how to scan.

    Args:
        channels: C.
        parameter_sets: K.
        d_state: N.
        expand_ratio: D over C.
        dt_rank: R; a sixteenth of C, rounded up, when None.
        backend: See :func:`evmamba_mm.ops.es2d_scan`.

    Raises:
        ValueError: If a size is not positive or the backend is unknown.

    Source: VMamba (arXiv:2401.10166), with Mamba's initialisation of the scan
    (arXiv:2312.00752).
    """

    def __init__(
        self,
        channels: int,
        parameter_sets: int,
        d_state: int = 16,
        expand_ratio: int = 2,
        dt_rank: int | None = None,
        backend: str = 'auto',
    ) -> None:
        super().__init__()
        rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        sizes = dict(
            channels=channels,
            d_state=d_state,
            expand_ratio=expand_ratio,
            dt_rank=rank,
        )
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f'{name} must be at least 1, got {size!r}')
        self.backend = check_backend(backend)
        inner = channels * expand_ratio
        self.in_proj = init_linear(channels, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(
            torch.empty(parameter_sets, rank + 2 * d_state, inner)
        )
        self.dt_projs_weight = nn.Parameter(
            torch.empty(parameter_sets, inner, rank)
        )
        self.dt_projs_bias = nn.Parameter(torch.empty(parameter_sets, inner))
        self.A_logs = nn.Parameter(
            torch.empty(parameter_sets * inner, d_state)
        )
        self.Ds = nn.Parameter(torch.empty(parameter_sets * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = init_linear(inner, channels, bias=False)
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Initialise what the scan owns."""
        inner, rank = self.dt_projs_weight.shape[1:]
        self.x_proj_weight.uniform_(-(inner**-0.5), inner**-0.5)
        self.dt_projs_weight.uniform_(-(rank**-0.5), rank**-0.5)
        self.dt_projs_bias.copy_(initial_dt_bias(self.dt_projs_bias.shape))
        self.A_logs.copy_(torch.arange(1, self.A_logs.shape[1] + 1).log())
        self.Ds.fill_(1)

    def scan(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scan a map (B, H, W, D), with the ready rows if there are any."""
        raise NotImplementedError

    def inference_weights(self) -> list[InferenceWeight | InferenceRows]:
        """Weights that an inference reads in another form."""
        return [
            InferenceWeight(self.in_proj),
            InferenceRows(self, 'x_proj_weight', self._row_layout),
            InferenceWeight(self.out_proj),
        ]

    def training_weights(self) -> list[nn.Module]:
        """Layers whose weights a training casts together."""
        return [self.in_proj, self.out_proj]

    def _row_layout(self) -> RowLayout:
        return scan_row_layout(self.x_proj_weight.shape, self.A_logs.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        in_proj, norm, out_proj = self.in_proj, self.out_norm, self.out_proj
        if is_plain(in_proj, nn.Linear):
            u, gate = split_linear(x, ready_or_own(in_proj)[0])
        else:
            u, gate = in_proj(x).chunk(2, -1)
        u = depthwise_conv(u, self.conv2d, 'silu')
        rows = ready_rows(self, 'x_proj_weight')
        y = self.scan(u) if rows is None else self.scan(u, rows)
        if is_plain(norm, nn.LayerNorm) and is_plain(out_proj, nn.Linear):
            weight, _ = ready_or_own(out_proj)
            return norm_gate_linear(
                y, gate, norm.weight, norm.bias, norm.eps, weight
            )
        return out_proj(norm(y) * F.silu(gate))
