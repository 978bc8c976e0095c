"""Checks that the fused kernels compute exactly what a block does.

This file lists every type and setting that they accept.

Shape letters: C channels, D inner channels, E hidden channels, K parameter
sets, N states, R dt rank.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from ..layers import (
    ES2D,
    SS2D,
    ConvSqueezeExcite,
    DropPath,
    EVSSBlock,
    InvertedResidual,
    LayerNorm,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
    SqueezeExcite,
)

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_TENSORS = (nn.Parameter, Tensor)
_KINDS = (
    ConvSqueezeExcite,
    DropPath,
    ES2D,
    EVSSBlock,
    InvertedResidual,
    LayerNorm,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
    SS2D,
    SqueezeExcite,
    nn.BatchNorm2d,
    nn.Conv2d,
    nn.GELU,
    nn.Identity,
    nn.LayerNorm,
    nn.Linear,
    nn.ReLU,
    nn.Sequential,
    nn.SiLU,
)
# A call of a module runs these, of the instance if it has its own.
_METHOD_NAMES = (
    '_call_impl',
    '_check_input_dim',
    '_compiled_call_impl',
    '_conv_forward',
    'forward',
    'sample_scale',
    'scan',
)
# The methods of the classes at import, before anybody patches them.
_METHODS = [
    (kind, name, getattr(kind, name))
    for kind in _KINDS
    for name in ('__call__', *_METHOD_NAMES)
    if name in kind.__dict__ or name in ('__call__', 'forward')
] + [(nn.Module, '_call_impl', nn.Module._call_impl)]
_has_global_hooks = getattr(nn_module, '_has_any_global_hook', lambda: False)


class _Difference(Exception):
    """A module is not what the kernels compute; the message says how."""


def _refuse(name: str, why: str) -> None:
    raise _Difference(f'{name or "the block"} {why}')


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs more than its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _untouched(name: str, module: nn.Module, kind: type[nn.Module]) -> None:
    """The module has exactly this class, without hooks or patches."""
    if type(module) is not kind:
        _refuse(name, f'is a {type(module).__name__}, not a {kind.__name__}')
    if has_hooks(module):
        _refuse(name, 'has a hook')
    if not module.__dict__.keys().isdisjoint(_METHOD_NAMES):
        own = module.__dict__.keys() & _METHOD_NAMES
        _refuse(name, f'has a patched {", ".join(sorted(own))}')


def _check_classes() -> None:
    if _has_global_hooks():
        raise _Difference('global module hooks are registered')
    for kind, method, original in _METHODS:
        if getattr(kind, method) is not original:
            raise _Difference(f'{kind.__name__} has a patched {method}')


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this class, without hooks or patches."""
    try:
        _check_classes()
        _untouched('', module, kind)
    except _Difference:
        return False
    return True


def _equal(name: str, setting: str, actual: object, expected: object) -> None:
    if actual != expected:
        _refuse(name, f'has {setting}={actual!r}, not {expected!r}')


class _BlockCheck:
    """Checks one block for one input.

    Args:
        x: The input. All parameters must be on its device and, without
            autocast, in its dtype.
    """

    def __init__(self, x: Tensor) -> None:
        self.shape = x.shape
        self.device = x.device
        autocast = torch.is_autocast_enabled(x.device.type)
        self.dtypes = KERNEL_DTYPES if autocast else (x.dtype,)

    def input(self, channels: int, least: int = 1) -> None:
        """A feature map with these channels, at least this high and wide."""
        shape = self.shape
        if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < least:
            _refuse('the input', f'has shape {tuple(shape)}')

    def tensor(
        self, name: str, key: str, x: Tensor | None, shape: Sequence[int]
    ) -> None:
        """An ordinary tensor of this shape."""
        if (
            type(x) not in _TENSORS
            or x.layout is not torch.strided
            or x.is_neg()
        ):
            _refuse(name, f'has a {key} that is no ordinary tensor')
        if x.shape != shape:
            _refuse(name, f'has a {key} of shape {tuple(x.shape)}')
        if x.dtype not in self.dtypes or x.device != self.device:
            _refuse(name, f'has its {key} in {x.dtype} on {x.device}')

    def weights(
        self,
        name: str,
        module: nn.Module,
        weight: Sequence[int],
        bias: Sequence[int] | None,
    ) -> None:
        """Parameters of these shapes; a bias of None stands for none."""
        # Pruning leaves a plain attribute that hides the parameter.
        if 'weight' in module.__dict__ or 'bias' in module.__dict__:
            _refuse(name, 'has a weight or bias that is no parameter')
        found = module._parameters
        self.tensor(name, 'weight', found.get('weight'), weight)
        if bias is not None:
            self.tensor(name, 'bias', found.get('bias'), bias)
        elif found.get('bias') is not None:
            _refuse(name, 'has a bias')

    def linear(
        self, name: str, module: nn.Module, shape: tuple[int, int], bias: bool
    ) -> None:
        _untouched(name, module, nn.Linear)
        self.weights(name, module, shape, shape[:1] if bias else None)

    def conv(
        self,
        name: str,
        module: nn.Module,
        shape: tuple[int, int, int, int],
        bias: bool | None,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> None:
        """A bias of None stands for either."""
        _untouched(name, module, nn.Conv2d)
        _equal(name, 'stride', module.stride, (stride, stride))
        _equal(name, 'padding', module.padding, (padding, padding))
        _equal(name, 'dilation', module.dilation, (1, 1))
        _equal(name, 'groups', module.groups, groups)
        _equal(name, 'padding_mode', module.padding_mode, 'zeros')
        if bias is None:
            bias = module._parameters.get('bias') is not None
        self.weights(name, module, shape, shape[:1] if bias else None)

    def depthwise(
        self, name: str, module: nn.Module, channels: int, bias: bool | None
    ) -> None:
        shape = (channels, 1, 3, 3)
        self.conv(name, module, shape, bias, padding=1, groups=channels)

    def map_norm(self, name: str, module: nn.Module) -> int:
        """The channels of a LayerNorm2d."""
        channels = getattr(module, 'normalized_shape', (0,))[0]
        self.layer_norm(name, module, channels, LayerNorm2d)
        return channels

    def layer_norm(
        self,
        name: str,
        module: nn.Module,
        channels: int,
        kind: type[nn.Module] = LayerNorm,
    ) -> None:
        # Torch's own gives the same on a GPU.
        torchs = kind is LayerNorm and type(module) is nn.LayerNorm
        _untouched(name, module, nn.LayerNorm if torchs else kind)
        shape = (channels,)
        _equal(name, 'normalized_shape', module.normalized_shape, shape)
        self.weights(name, module, shape, shape)

    def batch_norm(self, name: str, module: nn.Module, channels: int) -> None:
        """A BatchNorm2d, or the nn.Identity that `fuse` leaves."""
        if type(module) is nn.Identity:
            _untouched(name, module, nn.Identity)
            return
        _untouched(name, module, nn.BatchNorm2d)
        _equal(name, 'track_running_stats', module.track_running_stats, True)
        if module.momentum is None:
            _refuse(name, 'has momentum=None')
        shape = (channels,)
        self.weights(name, module, shape, shape)
        for key in ('running_mean', 'running_var'):
            self.tensor(name, key, module._buffers.get(key), shape)
        batches = module.num_batches_tracked
        if batches is not None and batches.dtype != torch.int64:
            _refuse(name, f'has num_batches_tracked in {batches.dtype}')

    def scan_mixer(self, name: str, module: nn.Module, channels: int) -> None:
        if type(module) not in (ES2D, SS2D):
            _refuse(name, f'is a {type(module).__name__}, not ES2D or SS2D')
        _untouched(name, module, type(module))
        if module.A_logs.dim() != 2 or module.dt_projs_weight.dim() != 3:
            _refuse(name, 'has scan parameters of other dimensions')
        sets, inner, rank = module.dt_projs_weight.shape
        states = module.A_logs.shape[1]
        shapes = dict(
            x_proj_weight=(sets, rank + 2 * states, inner),
            dt_projs_weight=(sets, inner, rank),
            dt_projs_bias=(sets, inner),
            A_logs=(sets * inner, states),
            Ds=(sets * inner,),
        )
        for key, shape in shapes.items():
            self.tensor(name, key, module._parameters.get(key), shape)
        self.linear(
            f'{name}.in_proj', module.in_proj, (2 * inner, channels), False
        )
        self.depthwise(f'{name}.conv2d', module.conv2d, inner, True)
        _untouched(f'{name}.act', module.act, nn.SiLU)
        _equal(f'{name}.act', 'inplace', module.act.inplace, False)
        self.layer_norm(f'{name}.out_norm', module.out_norm, inner)
        self.linear(
            f'{name}.out_proj', module.out_proj, (channels, inner), False
        )

    def conv_branch(self, name: str, module: nn.Module, channels: int) -> None:
        conv, norm, act, pointwise = _children(name, module, 4)
        self.depthwise(f'{name}.0', conv, channels, True)
        self.batch_norm(f'{name}.1', norm, channels)
        _gelu(f'{name}.2', act)
        self.conv(f'{name}.3', pointwise, (channels, channels, 1, 1), True)

    def squeeze_excite(
        self, name: str, module: nn.Module, channels: int
    ) -> None:
        _untouched(name, module, SqueezeExcite)
        self.layer_norm(f'{name}.norm', module.norm, channels)
        shape = (getattr(module.global_reduce, 'out_features', 0), channels)
        self.linear(f'{name}.global_reduce', module.global_reduce, shape, True)
        _gelu(f'{name}.act', module.act)
        self.linear(
            f'{name}.channel_select', module.channel_select, shape[::-1], True
        )

    def evss_block(self, block: EVSSBlock) -> None:
        channels = self.map_norm('norm', block.norm)
        self.input(channels)
        self.scan_mixer('mixer', block.mixer, channels)
        _untouched('drop_path', block.drop_path, DropPath)
        if block.fusion:
            self.conv_branch('conv_branch', block.conv_branch, channels)
            self.squeeze_excite('se', block.se, channels)

    def inverted_residual(self, block: InvertedResidual) -> None:
        conv, norm, act = _children('conv_pw', block.conv_pw, 3)
        inner, channels = _weight_shape('conv_pw.0', conv)[:2]
        self.conv('conv_pw.0', conv, (inner, channels, 1, 1), None)
        self.batch_norm('conv_pw.1', norm, inner)
        _untouched('conv_pw.2', act, nn.ReLU)
        conv, norm, act = _children('conv_dw', block.conv_dw, 3)
        self.depthwise('conv_dw.0', conv, inner, None)
        self.batch_norm('conv_dw.1', norm, inner)
        _untouched('conv_dw.2', act, nn.ReLU)
        se = block.se
        _untouched('se', se, ConvSqueezeExcite)
        shape = (getattr(se.conv_reduce, 'out_channels', 0), inner, 1, 1)
        self.conv('se.conv_reduce', se.conv_reduce, shape, True)
        _untouched('se.act', se.act, nn.ReLU)
        shape = (inner, shape[0], 1, 1)
        self.conv('se.conv_expand', se.conv_expand, shape, True)
        conv, norm = _children('conv_pw2', block.conv_pw2, 2)
        self.conv('conv_pw2.0', conv, (channels, inner, 1, 1), None)
        self.batch_norm('conv_pw2.1', norm, channels)
        _untouched('drop_path', block.drop_path, DropPath)
        self.input(channels)

    def patch_embed(self, block: PatchEmbed) -> None:
        conv = block.conv
        outputs, _, side, _ = _weight_shape('conv', conv)
        # The check of the image reads these settings.
        _equal('conv', 'kernel_size', conv.kernel_size, (side, side))
        shape = (outputs, conv.in_channels, side, side)
        self.conv('conv', conv, shape, True, stride=side)
        self.layer_norm('norm', block.norm, outputs, LayerNorm2d)
        self.input(conv.in_channels, side)

    def patch_merging(self, block: PatchMerging) -> None:
        channels = self.map_norm('norm', block.norm)
        self.input(channels // 4)
        outputs = getattr(block.reduction, 'out_features', 0)
        shape = (outputs, channels)
        self.linear('reduction', block.reduction, shape, False)

    def output_norm(self, block: LayerNorm2d) -> None:
        self.input(self.map_norm('', block))


def _weight_shape(name: str, conv: nn.Module) -> torch.Size:
    # To read the weight of another class may run a parametrisation.
    _untouched(name, conv, nn.Conv2d)
    return conv.weight.shape


def _children(name: str, module: nn.Module, count: int) -> list[nn.Module]:
    _untouched(name, module, nn.Sequential)
    _equal(name, 'length', len(module), count)
    return list(module)


def _gelu(name: str, module: nn.Module) -> None:
    _untouched(name, module, nn.GELU)
    _equal(name, 'approximate', module.approximate, 'none')


_CHECKS: dict[type[nn.Module], Callable[[_BlockCheck, nn.Module], None]] = {
    EVSSBlock: _BlockCheck.evss_block,
    InvertedResidual: _BlockCheck.inverted_residual,
    LayerNorm2d: _BlockCheck.output_norm,
    PatchEmbed: _BlockCheck.patch_embed,
    PatchMerging: _BlockCheck.patch_merging,
}


def difference(block: nn.Module, x: Tensor) -> str | None:
    """Which module of a block the kernels do not compute, and why.

    Args:
        block: A stem, a block of a stage, a patch merging or an output norm.
        x: Its input.

    Returns:
        None where the kernels compute exactly what the block does.
    """
    kind = type(block)
    if kind not in _CHECKS:
        return f'there are no kernels for a {kind.__name__}'
    try:
        _check_classes()
        _untouched('', block, kind)
        _CHECKS[kind](_BlockCheck(x), block)
    except _Difference as difference:
        return str(difference)
    except (AttributeError, IndexError, TypeError) as error:
        # A replaced module lacks what the one in its place had.
        return f'a module was replaced ({error})'
    return None
