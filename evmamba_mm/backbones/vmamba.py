"""VMamba, the backbone that EfficientVMamba is compared with."""

from collections.abc import Mapping, Sequence

from mmengine.registry import MODELS

from ..arguments import checked
from .arch import ARCHS, Arch, resolve_arch
from .efficientvmamba import EfficientVMamba

# 'atto' is a test size, nothing was published for it.
VMAMBA_ARCHS = {
    'atto': ARCHS['atto'],
    'tiny': Arch((96, 192, 384, 768), (2, 2, 9, 2)),
    'small': Arch((96, 192, 384, 768), (2, 2, 27, 2)),
    'base': Arch((128, 256, 512, 1024), (2, 2, 27, 2)),
}


@MODELS.register_module()
class VMamba(EfficientVMamba):
    """VMamba: a scan in four directions in every block of every stage.

    It has EfficientVMamba's stem and patch merging, and blocks
    ``x + drop(SS2D(norm(x)))``. This is the first published version, without
    feed-forward layers. Patch merging pads a feature map with an odd side with
    zeros, while the released code drops the last row or column; image sides
    that are multiples of 32 give no odd sides.

    Args:
        arch: 'tiny', 'small', 'base', the test size 'atto', or a dict with
            ``channels`` and ``depths``.
        in_channels: Channels of the image.
        out_indices: Stages to return; negative ones count from the end.
        d_state: States of the scan.
        scan_backend: See :func:`evmamba_mm.ops.selective_scan`.
        drop_path_rate: Stochastic depth of the last block; rises linearly
            from 0 at the first.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the
            first n stages with their patch mergings and output norms.
        with_cp: Whether the backward recomputes the blocks, which saves
            memory and costs time.
        fused: As of :class:`evmamba_mm.EfficientVMamba`.
        init_cfg: As in mmengine. With type 'Pretrained' a checkpoint that
            does not fit raises a ValueError.

    Raises:
        ValueError: If an argument is illegal; the message lists legal values.

    Source: VMamba (arXiv:2401.10166, version 1).
    """

    @checked
    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        d_state: int = 16,
        scan_backend: str = 'auto',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        fused: bool | str = 'auto',
        init_cfg: dict | list | None = None,
    ) -> None:
        settings = resolve_arch(arch, VMAMBA_ARCHS)
        super().__init__(
            arch=dict(channels=settings.channels, depths=settings.depths),
            in_channels=in_channels,
            out_indices=out_indices,
            block_types=('ss2d',) * len(settings.depths),
            d_state=d_state,
            scan_backend=scan_backend,
            drop_path_rate=drop_path_rate,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            fused=fused,
            init_cfg=init_cfg,
        )
