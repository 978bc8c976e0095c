"""Vim's mixer: one sequence scanned forwards and backwards.

Shape letters: B batch, L length, C channels, D inner channels, N states,
R dt rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import checked
from ..ops import selective_scan
from .scan_mixer import initial_dt_bias, resolve_dt_rank


def _initial_a_log(inner: int, d_state: int) -> nn.Parameter:
    """Decay rates of 1 to N in every channel."""
    rates = torch.arange(1, d_state + 1).log()
    return nn.Parameter(rates.repeat(inner, 1))


class BiMamba(nn.Module):
    """Gated token mixer with a causal scan in each direction.

    Project to a value and a gate; each direction has its own causal
    convolution, projections and scan of the value; the mean of the two is
    gated and projected back. Parameters ending in
    ``_b`` read backwards.

    Args:
        channels: C.
        d_state: N.
        d_conv: Steps that the convolution sees, the present one included.
        expand_ratio: D over C.
        dt_rank: R; a sixteenth of C, rounded up, when None.
        backend: See :func:`evmamba_mm.ops.selective_scan`.
        act: Makes the activation.

    Raises:
        ValueError: If a size is not positive or the backend is unknown.

    Source: Vim (arXiv:2401.09417), algorithm 1, with the halved sum, the
    initialisation and the parameter names of its released weights.
    """

    @checked
    def __init__(
        self,
        channels: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand_ratio: int = 2,
        dt_rank: int | None = None,
        backend: str = 'auto',
        act: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        rank = resolve_dt_rank(channels, dt_rank)
        self.backend = backend
        self.d_conv = d_conv
        self.splits = (rank, d_state, d_state)
        inner = channels * expand_ratio
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.act = act()
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.conv1d_b = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self.splits), bias=False)
        self.x_proj_b = nn.Linear(inner, sum(self.splits), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.dt_proj_b = nn.Linear(rank, inner)
        self.A_log = _initial_a_log(inner, d_state)
        self.A_b_log = _initial_a_log(inner, d_state)
        self.D = nn.Parameter(torch.ones(inner))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_scan_parameters()

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Initialise the step sizes.

        The backward direction starts from a bias of zero: the released code
        sets every bias to zero but the forward direction's.
        """
        bound = self.splits[0] ** -0.5
        for projection in (self.dt_proj, self.dt_proj_b):
            nn.init.uniform_(projection.weight, -bound, bound)
        self.dt_proj.bias.copy_(initial_dt_bias(self.dt_proj.bias.shape))
        nn.init.zeros_(self.dt_proj_b.bias)

    def _streams(
        self,
        u: Tensor,
        conv: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input, step sizes, B and C of one direction from (B, D, L)."""
        u = self.act(conv(F.pad(u, (self.d_conv - 1, 0))))
        dt, B, C = x_proj(u.mT).split(self.splits, dim=-1)
        return u, dt_proj(dt).mT, B.mT, C.mT

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (B, L, C) to (B, L, C)."""
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        u = value.mT
        forwards = self._streams(u, self.conv1d, self.x_proj, self.dt_proj)
        backwards = self._streams(
            u.flip(-1), self.conv1d_b, self.x_proj_b, self.dt_proj_b
        )
        u, delta, B, C = zip(forwards, backwards, strict=True)
        # Half precision would round A's large decay rates.
        A_log = torch.cat([self.A_log, self.A_b_log])
        A = -A_log.to(torch.promote_types(A_log.dtype, torch.float32)).exp()
        y = selective_scan(
            torch.cat(u, dim=1),
            torch.cat(delta, dim=1),
            A,
            torch.stack(B, dim=1),
            torch.stack(C, dim=1),
            torch.cat([self.D, self.D_b]),
            delta_softplus=True,
            backend=self.backend,
        )
        first, second = y.chunk(2, dim=1)
        y = (first + second.flip(-1)).mT / 2
        return self.out_proj(y * self.act(gate))
