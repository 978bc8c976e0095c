"""VMamba's 2-D scan, the baseline that ES2D is compared with."""

from torch import Tensor

from ..ops import ss2d_scan
from .scan_mixer import ScanMixer


class SS2D(ScanMixer):
    """Gated mixer that scans the whole map in four directions.

    Args:
        channels: Channels of the channels-last map.
        d_state: States of the scan.
        expand_ratio: Inner channels over channels.
        dt_rank: Rank of the step-size projection; a sixteenth of the
            channels, rounded up, when None.
        backend: See :func:`evmamba_mm.ops.ss2d_scan`.

    Raises:
        ValueError: If a size is not positive or the backend is unknown.

    Source: VMamba (arXiv:2401.10166).
    """

    def __init__(
        self,
        channels: int,
        d_state: int = 16,
        expand_ratio: int = 2,
        dt_rank: int | None = None,
        backend: str = 'auto',
    ) -> None:
        super().__init__(
            channels,
            parameter_sets=4,
            d_state=d_state,
            expand_ratio=expand_ratio,
            dt_rank=dt_rank,
            backend=backend,
        )

    def scan(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scan a map (B, H, W, D) in four directions and sum."""
        return ss2d_scan(
            u,
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
            backend=self.backend,
            rows=rows,
        )
