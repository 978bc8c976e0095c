"""EfficientVMamba as a multi-scale backbone."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import (
    ES2D,
    SS2D,
    EVSSBlock,
    InvertedResidual,
    LayerNorm,
    PatchEmbed,
    PatchMerging,
    narrow_weights,
    prepared_weights,
)
from .arch import Arch, resolve_arch, resolve_block_types, resolve_out_indices
from .pretrained import check_pretrained, pretrained_configs
from .recompute import checkpoint_block


@MODELS.register_module()
class EfficientVMamba(BaseModule):
    """EfficientVMamba: scans in the early stages, convolutions in the late.

    The image must be at least 4x4; a stage's map is a fourth, an eighth, a
    sixteenth and a 32nd of it, rounded up after the stem. Stages beyond the
    last output are not built, so that every parameter has a gradient.

    Args:
        arch: 'tiny', 'small', 'base', the test size 'atto', or a dict with
            ``channels`` and ``depths``.
        in_channels: Channels of the image.
        out_indices: Stages to return; negative ones count from the end.
        block_types: Block of each stage: 'evss' (scan with convolution branch
            and channel attention), 'es2d' (scan alone), 'ss2d' (VMamba's scan
            in four directions alone) or 'inverted_residual'.
        step_size: Distance between the cells of a scanned group.
        d_state: States of the scan.
        scan_backend: See :func:`evmamba_mm.ops.selective_scan`.
        drop_path_rate: Stochastic depth of the last block; rises linearly
            from 0 at the first.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the
            first n stages with what lies between and their output norms.
        norm_eval: Whether BatchNorm layers stay in evaluation while training.
        with_cp: Whether to recompute blocks in the backward. Changes memory
            and time alone.
        init_cfg: As in mmengine. With type 'Pretrained' a checkpoint that
            does not fit is refused.

    Raises:
        ValueError: If an argument is not legal; the message says what is.

    Source: EfficientVMamba (arXiv:2403.09977), as in its released weights.
    """

    BLOCK_TYPES = ('evss', 'es2d', 'ss2d', 'inverted_residual')

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        block_types: Sequence[str] = (
            'evss',
            'evss',
            'inverted_residual',
            'inverted_residual',
        ),
        step_size: int = 2,
        d_state: int = 16,
        scan_backend: str = 'auto',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        settings = resolve_arch(arch)
        stages = len(settings.channels)
        self.out_indices = resolve_out_indices(out_indices, stages)
        types = resolve_block_types(block_types, self.BLOCK_TYPES, stages)
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(
                f'in_channels must be at least 1, got {in_channels!r}'
            )
        if not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(
                f'drop_path_rate must lie in [0, 1), got {drop_path_rate!r}'
            )
        if frozen_stages not in range(-1, stages + 1):
            raise ValueError(
                f'frozen_stages must be -1 to {stages}, got {frozen_stages!r}'
            )
        self.step_size = step_size
        self.d_state = d_state
        self.scan_backend = scan_backend
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        self._build_stages(settings, types, in_channels, drop_path_rate)
        self._freeze_stages()

    def _build_stages(
        self,
        settings: Arch,
        types: Sequence[str],
        in_channels: int,
        drop_path_rate: float,
    ) -> None:
        blocks = sum(settings.depths)
        rates = iter(
            drop_path_rate * i / max(1, blocks - 1) for i in range(blocks)
        )
        channels = settings.channels[: self.out_indices[-1] + 1]
        self.patch_embed = PatchEmbed(in_channels, channels[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    self._block(block_type, width, next(rates))
                    for _ in range(depth)
                )
            )
            for block_type, width, depth in zip(
                types, channels, settings.depths, strict=False
            )
        )
        self.downsamples = nn.ModuleList(
            PatchMerging(*pair) for pair in itertools.pairwise(channels)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm(channels[i]))

    def _block(
        self, block_type: str, channels: int, drop_path_rate: float
    ) -> nn.Module:
        if block_type == 'inverted_residual':
            return InvertedResidual(channels, drop_path_rate=drop_path_rate)
        if block_type == 'ss2d':
            mixer = SS2D(channels, self.d_state, backend=self.scan_backend)
        else:
            mixer = ES2D(
                channels,
                self.step_size,
                self.d_state,
                backend=self.scan_backend,
            )
        return EVSSBlock(
            channels,
            mixer,
            fusion=block_type == 'evss',
            drop_path_rate=drop_path_rate,
        )

    def init_weights(self) -> None:
        """Initialise; refuse pretrained weights that do not fit."""
        for config in pretrained_configs(self.init_cfg):
            check_pretrained(self, config)
        super().init_weights()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of an image.

        Args:
            image: (B, in_channels, H, W).

        Returns:
            One normalised NCHW map an output stage, in the order of
            ``out_indices``.

        Raises:
            ValueError: If the image's shape, dtype or device does not fit.
        """
        with prepared_weights(self, image):
            return tuple(self._maps(image))

    def _maps(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        outputs = []
        for i, stage in enumerate(self.stages):
            parts = (*self.downsamples[max(0, i - 1) : i], stage)
            # What is computed again in the backward reads the weights again.
            again = self.with_cp and torch.is_grad_enabled()
            with narrow_weights(() if again else parts, x):
                if i > 0:
                    x = self.downsamples[i - 1](x)
                for block in stage:
                    x = checkpoint_block(block, x) if again else block(x)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return outputs

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        n = self.frozen_stages
        modules = [self.patch_embed, *self.stages[:n]]
        modules += self.downsamples[: max(0, n - 1)]
        modules += [
            getattr(self, f'norm{i}') for i in self.out_indices if i < n
        ]
        return modules

    def _freeze_stages(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'EfficientVMamba':
        """Switch to training but for what is frozen."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
