"""Efficient 2-D scan, the mixer of EfficientVMamba."""

from collections.abc import Callable

from torch import Tensor, nn

from ..arguments import checked
from ..ops import AtrousGroups, es2d_scan
from .scan_mixer import ScanMixer


class ES2D(ScanMixer):
    """Gated mixer that scans every ``step_size``-th position as a group.

    Args:
        channels: Channels of the feature map (B, C, H, W).
        step_size: Distance between two positions of a group.
        d_state: States of the scan.
        expand_ratio: Inner channels over channels.
        dt_rank: Rank of the step-size projection; a sixteenth of the
            channels, rounded up, when None.
        backend: See :func:`evmamba_mm.ops.es2d_scan`.
        act: Makes the activation.

    Raises:
        ValueError: If a size or the step is not positive, or the backend is
            unknown.

    Source: EfficientVMamba (arXiv:2403.09977), section 4.1.
    """

    @checked
    def __init__(
        self,
        channels: int,
        step_size: int = 2,
        d_state: int = 16,
        expand_ratio: int = 2,
        dt_rank: int | None = None,
        backend: str = 'auto',
        act: Callable[[], nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__(
            channels,
            parameter_sets=AtrousGroups(step_size).sets,
            d_state=d_state,
            expand_ratio=expand_ratio,
            dt_rank=dt_rank,
            backend=backend,
            act=act,
        )
        self.step_size = step_size

    def scan(self, u: Tensor) -> Tensor:
        """Scan a feature map (B, H, W, D) group by group."""
        return es2d_scan(
            u,
            self.x_proj_weight,
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
            step_size=self.step_size,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Show the step in the module's repr."""
        return f'step_size={self.step_size}'
