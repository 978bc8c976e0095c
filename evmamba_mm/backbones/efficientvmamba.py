"""EfficientVMamba as a multi-scale backbone."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import checked
from ..fast import blocks_to_run, check_fused, run_block
from ..layers import LayerNorm2d, PatchEmbed, PatchMerging
from .arch import resolve_arch, resolve_block_types, resolve_out_indices
from .options import check_frozen_stages
from .pretrained import PretrainedBackbone
from .recompute import checkpoint_block
from .stages import BLOCKS, StageOptions, stage_options


@MODELS.register_module()
class EfficientVMamba(PretrainedBackbone):
    """EfficientVMamba: scans in the early stages, convolutions in the late.

    The image must be at least 4x4. The feature maps have strides 4, 8, 16 and
    32; sizes are rounded up after the stem. Stages beyond the last output are
    not built, so that every parameter has a gradient. Options marked (s) take
    one value or a list with one per stage.

    Args:
        arch: 'tiny', 'small', 'base', the test size 'atto', or a dict with
            ``channels`` and ``depths``.
        in_channels: Channels of the image.
        out_indices: Stages to return; negative ones count from the end.
        block_types: Block of each stage: 'evss' (scan with convolution branch
            and channel attention), 'es2d' (scan alone), 'ss2d' (VMamba's scan
            in four directions alone) or 'inverted_residual'.
        step_size: Distance between the positions of a scanned group (s).
        d_state: States of the scan (s).
        expand_ratio: Inner channels of a mixer over its channels (s).
        dt_rank: Rank of the scan's step-size projection; a sixteenth of the
            channels, rounded up, when None (s).
        se_ratio: Hidden width of an EVSS block's channel attention over its
            channels (s).
        inverted_expand_ratio: Inner width of an inverted residual over its
            channels (s).
        inverted_se_ratio: Hidden width of its channel attention over the
            inner width (s).
        mixer_act_cfg: Activation in the mixers, a class of ``torch.nn`` or of
            mmengine's registry as ``type``.
        act_cfg: Activation of the EVSS block's convolution branch and channel
            attention.
        inverted_act_cfg: Activation of the inverted residuals.
        scan_backend: See :func:`evmamba_mm.ops.selective_scan`.
        drop_path_rate: Stochastic depth of the last block; rises linearly
            from 0 at the first.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the
            first n stages with their patch mergings and output norms.
        norm_eval: Whether BatchNorm stays in evaluation mode in training.
        with_cp: Whether the backward recomputes the blocks, which saves
            memory and costs time.
        fused: 'auto' uses the fused GPU kernels for blocks that they compute
            exactly, False never uses them, and True raises for other blocks.
            See :func:`evmamba_mm.fast.run_block`.
        init_cfg: As in mmengine. With type 'Pretrained' a checkpoint that
            does not fit raises a ValueError.

    Raises:
        ValueError: If an argument is illegal; the message lists legal values.

    Source: EfficientVMamba (arXiv:2403.09977), as in its released weights.
    """

    # A view: blocks that are added to BLOCKS later are legal, too.
    BLOCK_TYPES = BLOCKS.keys()

    @checked
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
        step_size: int | Sequence[int] = 2,
        d_state: int | Sequence[int] = 16,
        expand_ratio: int | Sequence[int] = 2,
        dt_rank: int | Sequence[int | None] | None = None,
        se_ratio: float | Sequence[float] = 0.125,
        inverted_expand_ratio: int | Sequence[int] = 4,
        inverted_se_ratio: float | Sequence[float] = 0.125,
        mixer_act_cfg: Mapping = dict(type='SiLU'),
        act_cfg: Mapping = dict(type='GELU'),
        inverted_act_cfg: Mapping = dict(type='ReLU'),
        scan_backend: str = 'auto',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        fused: bool | str = 'auto',
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        settings = resolve_arch(arch)
        stages = len(settings.channels)
        self.out_indices = resolve_out_indices(out_indices, stages)
        types = resolve_block_types(block_types, tuple(BLOCKS), stages)
        self.frozen_stages = check_frozen_stages(frozen_stages, stages)
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.fused = check_fused(fused)

        options = stage_options(
            settings.channels,
            dict(
                step_size=step_size,
                d_state=d_state,
                expand_ratio=expand_ratio,
                dt_rank=dt_rank,
                se_ratio=se_ratio,
                inverted_expand_ratio=inverted_expand_ratio,
                inverted_se_ratio=inverted_se_ratio,
            ),
            mixer_act_cfg,
            act_cfg,
            inverted_act_cfg,
            scan_backend,
        )
        self._build_stages(
            options, types, settings.depths, in_channels, drop_path_rate
        )
        self._freeze_stages()

    def _build_stages(
        self,
        options: Sequence[StageOptions],
        types: Sequence[str],
        depths: Sequence[int],
        in_channels: int,
        drop_path_rate: float,
    ) -> None:
        last = max(1, sum(depths) - 1)
        rates = (drop_path_rate * i / last for i in itertools.count())
        built = self.out_indices[-1] + 1
        channels = [stage.channels for stage in options[:built]]
        self.patch_embed = PatchEmbed(in_channels, channels[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(BLOCKS[kind](stage, next(rates)) for _ in range(depth))
            )
            for kind, stage, depth in zip(
                types[:built], options[:built], depths[:built], strict=True
            )
        )
        self.downsamples = nn.ModuleList(
            PatchMerging(*pair) for pair in itertools.pairwise(channels)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm2d(channels[i]))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each output, for the ``in_channels`` of a neck."""
        return tuple(info['num_chs'] for info in self.feature_info)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What timm says of each output: channels, stride and module."""
        return [
            dict(
                num_chs=getattr(self, f'norm{i}').weight.shape[0],
                reduction=4 * 2**i,
                module=f'norm{i}',
                index=i,
            )
            for i in self.out_indices
        ]

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the depths there are.

        The stem has depth 0, and each block its own; a patch merging belongs
        to the block behind it. Output norms have the depth of the head, the
        last.

        Args:
            param_name: Name of a parameter.
            prefix: What stands before the names of the backbone's own.
        """
        depths = [len(stage) for stage in self.stages]
        count = sum(depths) + 2
        part, *numbers = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or part.startswith('norm'):
            return count - 1, count
        if part == 'stages':
            before = sum(depths[: int(numbers[0])])
            return 1 + before + int(numbers[1]), count
        if part == 'downsamples':
            return 1 + sum(depths[: int(numbers[0]) + 1]), count
        return 0, count

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of an image.

        Args:
            image: (B, in_channels, H, W).

        Returns:
            One normalised feature map (B, C, H, W) per output stage, in the
            order of ``out_indices``.

        Raises:
            ValueError: If the image's shape, dtype or device does not fit.
        """
        x = self._run(self.patch_embed, image)
        maps = []
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self._run(self.downsamples[i - 1], x)
            for block in blocks_to_run(stage):
                if self.with_cp and torch.is_grad_enabled():
                    x = checkpoint_block(block, x, self._run)
                else:
                    x = self._run(block, x)
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}')
                maps.append(self._run(norm, x).contiguous())
        return tuple(maps)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return run_block(block, x, self.fused)

    def _freeze_stages(self) -> None:
        n = self.frozen_stages
        if n < 0:
            return
        modules = [self.patch_embed, *self.stages[:n]]
        modules += self.downsamples[: max(0, n - 1)]
        modules += [
            getattr(self, f'norm{i}') for i in self.out_indices if i < n
        ]
        for module in modules:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'EfficientVMamba':
        """Switch to training mode, except for frozen modules."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
