"""The modules that the fused kernels stand for.

The tables are independent of the constructors of the blocks: a block that is
built in another way, or changed later, does not fit them.

Shape letters: C channels, D inner channels, E hidden channels, K parameter
sets, N states, P patch size, R dt rank.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import nn

# Bound at import: others may replace the attributes of torch.nn.
from torch.nn import GELU, BatchNorm2d, Conv2d, Linear, ReLU, Sequential, SiLU

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

# Settings that the kernels read from the module.
_FREE = ('training', 'eps', 'momentum', 'drop_prob', 'backend')
# Torch's LayerNorm gives the same as ours on a GPU, and `fuse` leaves an
# Identity for a BatchNorm2d.
_ALSO = {LayerNorm: (nn.LayerNorm,), BatchNorm2d: (nn.Identity,)}
KINDS = (
    *(ConvSqueezeExcite, DropPath, ES2D, EVSSBlock, InvertedResidual),
    *(LayerNorm, LayerNorm2d, PatchEmbed, PatchMerging, SS2D, SqueezeExcite),
    *(BatchNorm2d, Conv2d, GELU, Linear, ReLU, Sequential, SiLU),
    *(nn.Identity, nn.LayerNorm),
)


class Part(NamedTuple):
    """What one module of a block must be.

    Args:
        kinds: Its class is one of them.
        settings: Attributes that must be equal.
        shapes: Of parameters and buffers, None where there must be none.
    """

    kinds: tuple[type[nn.Module], ...]
    settings: dict[str, object] = {}
    shapes: dict[str, tuple[int, ...] | None] = {}


# The modules by path, parents first; the channels of the input; its least
# height and width.
Parts = tuple[dict[str, Part], int, int]


@lru_cache(maxsize=1024)
def _like(kind: type[nn.Module], *arguments: int | bool) -> Part:
    """A module with the settings and shapes of a new one."""
    with torch.device('meta'):
        new = kind(*arguments)
    settings = {
        key: value
        for key, value in vars(new).items()
        if key[0] != '_' and key not in _FREE
    }
    shapes = {
        key: None if x is None else tuple(x.shape)
        for key, x in {**new._parameters, **new._buffers}.items()
    }
    return Part((kind, *_ALSO.get(kind, ())), settings, shapes)


def _conv(
    inputs: int,
    outputs: int,
    side: int = 1,
    bias: bool = True,
    stride: int = 1,
    groups: int = 1,
) -> Part:
    """Of patches, or with a result as large as the feature map."""
    padding = 0 if stride == side else side // 2
    sizes = inputs, outputs, side, stride, padding, 1, groups, bias
    return _like(Conv2d, *sizes)


def _depthwise(channels: int, bias: bool = True) -> Part:
    return _conv(channels, channels, 3, bias, groups=channels)


def _tensor(block: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter; reading it as an attribute may run a parametrisation."""
    path, _, key = f'.{name}'.rpartition('.')
    try:
        return attrgetter(f'{path}._parameters'[1:])(block)[key]
    except (AttributeError, KeyError):
        return None


def _shape(block: nn.Module, name: str) -> tuple[int, ...]:
    """Shape of a parameter, with ones where it lacks one of 4 dimensions."""
    x = _tensor(block, name)
    # An uninitialised parameter has no shape.
    shape = x.shape if type(x) in (nn.Parameter, torch.Tensor) else ()
    return (*(max(1, size) for size in shape), 1, 1, 1, 1)[:4]


def _mixer(block: EVSSBlock, C: int) -> dict[str, Part]:
    K, D, R, _ = _shape(block, 'mixer.dt_projs_weight')
    _, N, *_ = _shape(block, 'mixer.A_logs')
    shapes = dict(
        x_proj_weight=(K, R + 2 * N, D),
        dt_projs_weight=(K, D, R),
        dt_projs_bias=(K, D),
        A_logs=(K * D, N),
        Ds=(K * D,),
    )
    return {
        'mixer': Part((ES2D, SS2D), shapes=shapes),
        'mixer.in_proj': _like(Linear, C, 2 * D, False),
        'mixer.conv2d': _depthwise(D),
        'mixer.act': _like(SiLU),
        'mixer.out_norm': _like(LayerNorm, D),
        'mixer.out_proj': _like(Linear, D, C, False),
    }


def _fusion(block: EVSSBlock, C: int) -> dict[str, Part]:
    E, *_ = _shape(block, 'se.global_reduce.bias')
    return {
        'conv_branch': Part((Sequential,)),
        'conv_branch.0': _depthwise(C),
        'conv_branch.1': _like(BatchNorm2d, C),
        'conv_branch.2': _like(GELU),
        'conv_branch.3': _conv(C, C),
        'se': Part((SqueezeExcite,)),
        'se.norm': _like(LayerNorm, C),
        'se.global_reduce': _like(Linear, C, E),
        'se.act': _like(GELU),
        'se.channel_select': _like(Linear, E, C),
    }


def _evss_block(block: EVSSBlock) -> Parts:
    C, *_ = _shape(block, 'norm.weight')
    parts = {
        '': Part((EVSSBlock,)),
        'norm': _like(LayerNorm2d, C),
        **_mixer(block, C),
        'drop_path': Part((DropPath,)),
        **(_fusion(block, C) if vars(block).get('fusion', True) else {}),
    }
    return parts, C, 1


def _inverted_residual(block: InvertedResidual) -> Parts:
    D, *_ = _shape(block, 'conv_pw.0.weight')
    C, *_ = _shape(block, 'conv_pw2.0.weight')
    E, *_ = _shape(block, 'se.conv_reduce.weight')
    # `fuse` adds biases.
    bias_in, bias, bias_out = (
        _tensor(block, f'{name}.0.bias') is not None
        for name in ('conv_pw', 'conv_dw', 'conv_pw2')
    )
    parts = {
        '': Part((InvertedResidual,)),
        'conv_pw': Part((Sequential,)),
        'conv_pw.0': _conv(C, D, bias=bias_in),
        'conv_pw.1': _like(BatchNorm2d, D),
        'conv_pw.2': Part((ReLU,)),
        'conv_dw': Part((Sequential,)),
        'conv_dw.0': _depthwise(D, bias),
        'conv_dw.1': _like(BatchNorm2d, D),
        'conv_dw.2': Part((ReLU,)),
        'se': Part((ConvSqueezeExcite,)),
        'se.conv_reduce': _conv(D, E),
        'se.act': Part((ReLU,)),
        'se.conv_expand': _conv(E, D),
        'conv_pw2': Part((Sequential,)),
        'conv_pw2.0': _conv(D, C, bias=bias_out),
        'conv_pw2.1': _like(BatchNorm2d, C),
        'drop_path': Part((DropPath,)),
    }
    return parts, C, 1


def _patch_embed(block: PatchEmbed) -> Parts:
    C, inputs, P, _ = _shape(block, 'conv.weight')
    parts = {
        '': Part((PatchEmbed,)),
        'conv': _conv(inputs, C, P, stride=P),
        'norm': _like(LayerNorm2d, C),
    }
    return parts, inputs, P


def _patch_merging(block: PatchMerging) -> Parts:
    cell, *_ = _shape(block, 'norm.weight')
    outputs, *_ = _shape(block, 'reduction.weight')
    parts = {
        '': Part((PatchMerging,)),
        'norm': _like(LayerNorm2d, cell),
        'reduction': _like(Linear, cell, outputs, False),
    }
    return parts, cell // 4, 1


def _output_norm(block: LayerNorm2d) -> Parts:
    C, *_ = _shape(block, 'weight')
    return {'': _like(LayerNorm2d, C)}, C, 1


PARTS: dict[type[nn.Module], Callable[[nn.Module], Parts]] = {
    EVSSBlock: _evss_block,
    InvertedResidual: _inverted_residual,
    LayerNorm2d: _output_norm,
    PatchEmbed: _patch_embed,
    PatchMerging: _patch_merging,
}
