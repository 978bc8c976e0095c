"""Vim as a backbone of one scale.

Shape letters: B batch, H W grid of patches, L tokens, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import MAX_CHANNELS, MAX_DEPTH, checked, is_integer
from ..layers.vim_block import PatchTokens, VimBlock
from .arch import resolve_out_indices
from .options import check_frozen_stages
from .pretrained import PretrainedBackbone
from .recompute import checkpoint_block

# Of patches along a side: their number is the square.
MAX_GRID = 1024


@dataclass(frozen=True)
class VimArch:
    """Size of a backbone of one scale.

    Args:
        channels: Width of the tokens.
        depth: Number of layers.
    """

    channels: int
    depth: int


# 'atto' is a test size, nothing was published for it.
VIM_ARCHS = {
    'atto': VimArch(32, 4),
    'tiny': VimArch(192, 24),
    'small': VimArch(384, 24),
    'base': VimArch(768, 24),
}


def _resolve_arch(arch: str | Mapping) -> VimArch:
    if isinstance(arch, str) and arch in VIM_ARCHS:
        return VIM_ARCHS[arch]
    fits = isinstance(arch, Mapping) and set(arch) == {'channels', 'depth'}
    limits = dict(channels=MAX_CHANNELS, depth=MAX_DEPTH)
    if not fits or not all(
        is_integer(v) and 0 < v <= limits[k] for k, v in arch.items()
    ):
        raise ValueError(
            f'arch must be one of {", ".join(VIM_ARCHS)} or a dict with '
            'exactly channels and depth, positive integers of at most '
            f'{MAX_CHANNELS} and {MAX_DEPTH}, got {arch!r}'
        )
    return VimArch(arch['channels'], arch['depth'])


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


@MODELS.register_module()
class Vim(PretrainedBackbone):
    """Vim: patches and a class token in one sequence, scanned both ways.

    The class token stands in the middle of the patches, which are read row by
    row. For images of another size than ``img_size`` the position embedding is
    interpolated. Layers beyond the last output are not built, so that every
    parameter has a gradient.

    Args:
        arch: 'tiny', 'small', 'base', the test size 'atto', or a dict with
            ``channels`` and ``depth``.
        img_size: Side of the images that the position embedding is for.
        patch_size: Side of a patch; divides ``img_size``.
        in_channels: Channels of the image.
        out_indices: Layers to return; negative ones count from the end. The
            last of them goes through the final norm.
        out_type: 'cls_token' for (B, C), as mmpretrain's linear head takes
            it, or 'featmap' for (B, C, H, W).
        d_state: States of the scan.
        scan_backend: See :func:`evmamba_mm.ops.selective_scan`.
        drop_path_rate: Stochastic depth of the last layer; rises linearly
            from 0 at the first.
        frozen_stages: -1 freezes nothing, 0 the patches, the class token and
            the position embedding, n these and the first n layers.
        with_cp: Whether the backward recomputes the layers, which saves
            memory and costs time.
        init_cfg: As in mmengine. With type 'Pretrained' a checkpoint that
            does not fit raises a ValueError.

    Raises:
        ValueError: If an argument is illegal; the message lists legal values.

    Source: Vim (arXiv:2401.09417, version 2), with the names of its released
    weights.
    """

    OUT_TYPES = ('cls_token', 'featmap')

    @checked
    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'cls_token',
        d_state: int = 16,
        scan_backend: str = 'auto',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        settings = _resolve_arch(arch)
        self.out_indices = resolve_out_indices(out_indices, settings.depth)
        self._check_options(img_size, patch_size, out_type)
        self.frozen_stages = check_frozen_stages(frozen_stages, settings.depth)
        self.out_type = out_type
        self.grid = img_size // patch_size
        self.with_cp = with_cp

        channels = settings.channels
        self.patch_embed = PatchTokens(in_channels, channels, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.pos_embed = nn.Parameter(
            torch.empty(1, self.grid**2 + 1, channels)
        )
        self.layers = nn.ModuleList(
            VimBlock(
                channels,
                d_state,
                drop_path_rate * i / max(1, settings.depth - 1),
                scan_backend,
            )
            for i in range(self.out_indices[-1] + 1)
        )
        self.norm_f = nn.RMSNorm(channels, eps=1e-5)
        self._reset_parameters(settings.depth)
        self._freeze_stages()

    @classmethod
    def _check_options(
        cls, img_size: int, patch_size: int, out_type: str
    ) -> None:
        if img_size % patch_size:
            raise ValueError(
                f'img_size must be a multiple of patch_size {patch_size}, '
                f'got {img_size}'
            )
        if img_size > MAX_GRID * patch_size:
            raise ValueError(
                f'img_size must be at most {MAX_GRID} times patch_size '
                f'{patch_size}, got {img_size}'
            )
        if not isinstance(out_type, str) or out_type not in cls.OUT_TYPES:
            raise ValueError(
                f'out_type must be one of {", ".join(cls.OUT_TYPES)}, got '
                f'{out_type!r}'
            )

    @torch.no_grad()
    def _reset_parameters(self, depth: int) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for layer in self.layers:
            layer.mixer.out_proj.weight.div_(depth**0.5)

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embedding of a grid, the class token in the middle."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        middle = self.grid**2 // 2
        before, token, after = self.pos_embed.split(
            [middle, 1, self.grid**2 - middle], dim=1
        )
        patches = torch.cat([before, after], dim=1).mT
        patches = F.interpolate(
            patches.unflatten(-1, (self.grid, self.grid)),
            size=(height, width),
            mode='bicubic',
            align_corners=False,
        )
        return self._insert(patches.flatten(2).mT, token)

    @staticmethod
    def _insert(patches: Tensor, token: Tensor) -> Tensor:
        middle = patches.shape[1] // 2
        before, after = patches[:, :middle], patches[:, middle:]
        return torch.cat([before, token, after], dim=1)

    def _output(self, x: Tensor, height: int, width: int) -> Tensor:
        middle = height * width // 2
        if self.out_type == 'cls_token':
            return x[:, middle]
        patches = torch.cat([x[:, :middle], x[:, middle + 1 :]], dim=1)
        return patches.mT.unflatten(-1, (height, width)).contiguous()

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise decay, and the depths there are.

        Patches, class token and position embedding have depth 0, and each
        layer its own. The last norm has the depth of the head.

        Args:
            param_name: Name of a parameter.
            prefix: What stands before the names of the backbone's own.
        """
        count = len(self.layers) + 2
        part, *numbers = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or part == 'norm_f':
            return count - 1, count
        return (1 + int(numbers[0]) if part == 'layers' else 0), count

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Class token or feature map of an image after each output layer.

        Args:
            image: (B, in_channels, H, W).

        Returns:
            One tensor per output layer, in the order of ``out_indices``.

        Raises:
            ValueError: If the image's shape, dtype or device does not fit.
        """
        x = self.patch_embed(image)
        height, width = x.shape[1:3]
        token = self.cls_token.expand(x.shape[0], -1, -1)
        x = self._insert(x.flatten(1, 2), token)
        x = x + self._positions(height, width)
        outputs = []
        for i, layer in enumerate(self.layers):
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint_block(layer, x, _call)
            else:
                x = layer(x)
            if i in self.out_indices:
                last = i == len(self.layers) - 1
                y = self.norm_f(x) if last else x
                outputs.append(self._output(y, height, width))
        return tuple(outputs)

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        modules = [self.patch_embed, *self.layers[: self.frozen_stages]]
        if self.frozen_stages >= len(self.layers):
            modules.append(self.norm_f)
        for module in modules:
            module.eval()
            module.requires_grad_(False)
        self.cls_token.requires_grad_(False)
        self.pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> 'Vim':
        """Switch to training mode, except for frozen modules."""
        super().train(mode)
        self._freeze_stages()
        return self
