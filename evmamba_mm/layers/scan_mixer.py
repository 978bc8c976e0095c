"""Gated token mixer around a 2-D selective scan: the paper's Eq. 5.

Shape letters: B batch, C channels, H W feature map, D inner channels, K
parameter sets, N states, R dt rank.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..arguments import checked
from .layer_norm import LayerNorm, channels_first, channels_last
from .linear import init_linear


def initial_dt_bias(shape: tuple[int, ...]) -> Tensor:
    """Biases whose softplus is log-uniform between 0.001 and 0.1."""
    low, high = math.log(0.001), math.log(0.1)
    dt = torch.exp(torch.empty(shape).uniform_(low, high)).clamp(min=1e-4)
    # Inverse of softplus.
    return dt + torch.log(-torch.expm1(-dt))


def resolve_dt_rank(channels: int, dt_rank: int | None) -> int:
    """The given rank, or a sixteenth of the channels, rounded up."""
    return math.ceil(channels / 16) if dt_rank is None else dt_rank


class ScanMixer(nn.Module):
    """Gated token mixer of (B, C, H, W); subclasses define the scan.

    ``u, z = in_proj(x)``, then
    ``out_proj(out_norm(scan(act(conv2d(u)))) * act(z))``.

    Args:
        channels: C.
        parameter_sets: K.
        d_state: N.
        expand_ratio: D over C.
        dt_rank: R; a sixteenth of C, rounded up, when None.
        backend: See :func:`evmamba_mm.ops.es2d_scan`.
        act: Makes the activation.

    Raises:
        ValueError: If a size is not positive or the backend is unknown.

    Source: VMamba (arXiv:2401.10166), with Mamba's initialisation of the scan
    (arXiv:2312.00752).
    """

    @checked
    def __init__(
        self,
        channels: int,
        parameter_sets: int,
        d_state: int = 16,
        expand_ratio: int = 2,
        dt_rank: int | None = None,
        backend: str = 'auto',
        act: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        rank = resolve_dt_rank(channels, dt_rank)
        self.backend = backend
        inner, sets = channels * expand_ratio, parameter_sets
        self.in_proj = init_linear(channels, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.act = act()
        self.x_proj_weight = nn.Parameter(
            torch.empty(sets, rank + 2 * d_state, inner)
        )
        self.dt_projs_weight = nn.Parameter(torch.empty(sets, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(sets, inner))
        self.A_logs = nn.Parameter(torch.empty(sets * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(sets * inner))
        self.out_norm = LayerNorm(inner)
        self.out_proj = init_linear(inner, channels, bias=False)
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Initialise the parameters of the scan."""
        inner, rank = self.dt_projs_weight.shape[1:]
        self.x_proj_weight.uniform_(-(inner**-0.5), inner**-0.5)
        self.dt_projs_weight.uniform_(-(rank**-0.5), rank**-0.5)
        self.dt_projs_bias.copy_(initial_dt_bias(self.dt_projs_bias.shape))
        self.A_logs.copy_(torch.arange(1, self.A_logs.shape[1] + 1).log())
        self.Ds.fill_(1)

    def scan(self, u: Tensor) -> Tensor:
        """Scan a feature map (B, H, W, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, C, H, W) to (B, C, H, W)."""
        u, gate = self.in_proj(channels_last(x)).chunk(2, dim=-1)
        u = self.act(self.conv2d(channels_first(u)))
        y = self.scan(channels_last(u))
        y = self.out_proj(self.out_norm(y) * self.act(gate))
        return channels_first(y)
