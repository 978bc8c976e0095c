"""VMamba's 2-D scan, the baseline that ES2D is compared with."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..arguments import checked
from ..ops import FOUR_DIRECTIONS, CrossDirections, ss2d_scan
from .scan_mixer import ScanMixer


class SS2D(ScanMixer):
    """Gated mixer that scans the feature map in several directions.

    Args:
        channels: Channels of the feature map (B, C, H, W).
        d_state: States of the scan.
        expand_ratio: Inner channels over channels.
        dt_rank: Rank of the step-size projection; a sixteenth of the
            channels, rounded up, when None.
        backend: See :func:`evmamba_mm.ops.ss2d_scan`.
        act: Makes the activation.
        directions: See :func:`evmamba_mm.ops.ss2d_scan`; each has parameters
            of its own.

    Raises:
        ValueError: If a size is not positive, or the backend or a direction
            is unknown.

    Source: VMamba (arXiv:2401.10166).
    """

    @checked
    def __init__(
        self,
        channels: int,
        d_state: int = 16,
        expand_ratio: int = 2,
        dt_rank: int | None = None,
        backend: str = 'auto',
        act: Callable[[], nn.Module] = nn.SiLU,
        directions: Sequence[str] = FOUR_DIRECTIONS,
    ) -> None:
        # Refuses an unknown one.
        geometry = CrossDirections.of(directions)
        super().__init__(
            channels,
            parameter_sets=geometry.sets,
            d_state=d_state,
            expand_ratio=expand_ratio,
            dt_rank=dt_rank,
            backend=backend,
            act=act,
        )
        self.directions = geometry.directions

    def scan(self, u: Tensor) -> Tensor:
        """Scan a feature map (B, H, W, D) in every direction and sum."""
        return ss2d_scan(
            u,
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
            directions=self.directions,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Show the directions in the module's repr."""
        return f'directions={self.directions}'
