"""Blocks with fused kernels: each function computes what its block does.

They run only blocks that :mod:`.standard` has checked, so they read parameters
instead of calling modules. Every feature map inside is channels last.

Shape letters: B batch, C channels, H W feature map, D inner channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import (
    EVSSBlock,
    InvertedResidual,
    LayerNorm2d,
    PatchEmbed,
    PatchMerging,
    SqueezeExcite,
)
from ..layers.layer_norm import channels_first, channels_last
from ..ops.triton.batch_norm import (
    ChannelNorm,
    batch_norm_act,
    batch_norm_add_inference,
    statistics,
)
from ..ops.triton.depthwise import (
    depthwise_conv3x3,
    depthwise_conv3x3_inference,
)
from ..ops.triton.gated_residual import (
    gated_residual,
    gates_fit,
    residual_add,
)
from ..ops.triton.layer_norm import layer_norm, merge_layer_norm
from ..ops.triton.linear import linear, norm_gate_linear, split_linear
from ..ops.triton.patch_embed import patch_layer_norm
from ..ops.triton.squeeze_excite import squeeze_excite

_ACTIVATIONS = {'gelu': F.gelu, 'relu': F.relu}


def _fixed_norm(norm: nn.Module) -> ChannelNorm | None:
    """A BatchNorm as the kernels take it in evaluation, None for none."""
    if isinstance(norm, nn.Identity):
        return None
    return ChannelNorm(
        norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
    )


def _affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _norm_act(
    norm: nn.Module, x: Tensor, activation: str, dtype: torch.dtype
) -> Tensor:
    """BatchNorm and activation in one step; Identity stands for no norm."""
    if isinstance(norm, nn.Identity):
        return x if activation == 'none' else _ACTIVATIONS[activation](x)
    *tensors, eps, _ = _fixed_norm(norm)
    update = norm.training, norm.momentum, eps
    batches = norm.num_batches_tracked
    return batch_norm_act(x, *tensors, *update, activation, dtype, batches)


def _norm_before_relu(
    norm: nn.Module, x: Tensor
) -> tuple[Tensor, ChannelNorm | None]:
    """A map, and the norm before its ReLU for the kernel that reads it.

    Without a norm the map is activated here.
    """
    if isinstance(norm, nn.Identity):
        return x.relu(), None
    fixed = _fixed_norm(norm)
    mean, var = statistics(
        *(x, fixed.mean, fixed.var, norm.training, norm.momentum),
        norm.num_batches_tracked,
    )
    return x, fixed._replace(mean=mean, var=var, own=norm.training)


def _is_fixed(*modules: nn.Module) -> bool:
    """Whether no gradient is needed and every module is in evaluation mode."""
    return not torch.is_grad_enabled() and not any(
        module.training for module in modules
    )


def _linear_maps(
    dtype: torch.dtype, *modules: nn.Linear | nn.Conv2d
) -> list[tuple[Tensor, Tensor | None]]:
    """Weights (D, C) and biases of linear layers and convolutions of 1x1.

    Where no gradient is needed, one launch casts them; else they stay.
    """
    parameters = [x for m in modules for x in (m.weight, m.bias)]
    if not torch.is_grad_enabled():
        old = [x for x in parameters if x is not None and x.dtype != dtype]
        new = [torch.empty_like(x, dtype=dtype) for x in old]
        if old:
            torch._foreach_copy_(new, old)
        cast = dict(zip(map(id, old), new, strict=True))
        parameters = [cast.get(id(x), x) for x in parameters]
    weights = [weight.flatten(1) for weight in parameters[::2]]
    return list(zip(weights, parameters[1::2], strict=True))


def _conv_branch(
    branch: nn.Sequential,
    x: Tensor,
    pointwise: tuple[Tensor, Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """The branch, with its last convolution as a linear map."""
    conv, norm, *_ = branch
    if isinstance(norm, nn.Identity):
        y = depthwise_conv3x3(x, conv.weight, conv.bias, 'gelu', dtype)
    elif _is_fixed(norm):
        y = depthwise_conv3x3_inference(
            x, conv.weight, conv.bias, 'gelu', dtype, norm=_fixed_norm(norm)
        )
    else:
        y = depthwise_conv3x3(x, conv.weight, conv.bias, 'none', dtype)
        y = _norm_act(norm, y, 'gelu', dtype)
    return linear(y, *pointwise)


def _gated_sum(
    se: SqueezeExcite,
    residual: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor | None,
) -> Tensor:
    """``residual + scale * (se(a) + se(b))``."""
    reduce, expand = se.global_reduce, se.channel_select
    if not gates_fit(a.shape[3], reduce.out_features):
        a, b = (channels_last(se(channels_first(x))) for x in (a, b))
        return residual_add(residual, a + b, scale)
    gates = reduce.weight, reduce.bias, expand.weight, expand.bias
    return gated_residual(residual, a, b, *_affine(se.norm), *gates, scale)


def _evss_block(block: EVSSBlock, x: Tensor, dtype: torch.dtype) -> Tensor:
    mixer, conv = block.mixer, block.mixer.conv2d
    modules = [mixer.in_proj, mixer.out_proj]
    if block.fusion:
        modules.append(block.conv_branch[3])
    (in_proj, _), (out_proj, _), *pointwise = _linear_maps(dtype, *modules)
    x = channels_last(x)
    n = layer_norm(x, *_affine(block.norm), dtype)
    u, gate = split_linear(n, in_proj)
    u = depthwise_conv3x3(u, conv.weight, conv.bias, 'silu', dtype)
    y = mixer.scan(u)
    y = norm_gate_linear(y, gate, *_affine(mixer.out_norm), out_proj, dtype)
    scale = block.drop_path.sample_scale(y)
    if not block.fusion:
        return channels_first(residual_add(x, y, scale))
    local = _conv_branch(block.conv_branch, n, *pointwise, dtype)
    return channels_first(_gated_sum(block.se, x, y, local, scale))


def _inverted_residual(
    block: InvertedResidual, x: Tensor, dtype: torch.dtype
) -> Tensor:
    conv_pw, norm_pw, _ = block.conv_pw
    conv_dw, norm_dw, _ = block.conv_dw
    conv_pw2, norm_pw2 = block.conv_pw2
    se = block.se
    first, reduce, expand, last = _linear_maps(
        dtype, conv_pw, se.conv_reduce, se.conv_expand, conv_pw2
    )
    gates = [(weight.to(dtype), bias) for weight, bias in (reduce, expand)]
    x = channels_last(x)
    y = linear(x.to(dtype), *first)
    fixed = _is_fixed(block.drop_path, norm_pw, norm_dw, norm_pw2)
    if fixed:
        y, mean = depthwise_conv3x3_inference(
            y,
            conv_dw.weight,
            conv_dw.bias,
            'relu',
            dtype,
            norm=_fixed_norm(norm_dw),
            input_norm=_fixed_norm(norm_pw),
            input_activation='relu',
            pooled=True,
        )
        y = squeeze_excite(y, *gates[0], *gates[1], dtype, mean)
    else:
        y, norm = _norm_before_relu(norm_pw, y)
        y = depthwise_conv3x3(
            y, conv_dw.weight, conv_dw.bias, 'none', dtype, norm
        )
        y, norm = _norm_before_relu(norm_dw, y)
        y = squeeze_excite(y, *gates[0], *gates[1], dtype, norm_relu=norm)
    y = linear(y, *last)
    if fixed and isinstance(norm_pw2, nn.BatchNorm2d):
        y = batch_norm_add_inference(y, *_fixed_norm(norm_pw2)[:5], x)
        return channels_first(y)
    y = _norm_act(norm_pw2, y, 'none', dtype)
    scale = block.drop_path.sample_scale(y)
    return channels_first(residual_add(x, y, scale))


def _patch_embed(block: PatchEmbed, x: Tensor, dtype: torch.dtype) -> Tensor:
    conv, affine = block.conv, _affine(block.norm)
    y = patch_layer_norm(x, conv.weight, conv.bias, *affine, dtype)
    return channels_first(y)


def _patch_merging(
    block: PatchMerging, x: Tensor, dtype: torch.dtype
) -> Tensor:
    y = merge_layer_norm(channels_last(x), *_affine(block.norm), dtype)
    return channels_first(linear(y, block.reduction.weight))


def _output_norm(norm: LayerNorm2d, x: Tensor, dtype: torch.dtype) -> Tensor:
    y = layer_norm(channels_last(x), *_affine(norm), x.dtype)
    return channels_first(y)


_BLOCKS: dict[type[nn.Module], Callable] = {
    EVSSBlock: _evss_block,
    InvertedResidual: _inverted_residual,
    LayerNorm2d: _output_norm,
    PatchEmbed: _patch_embed,
    PatchMerging: _patch_merging,
}


def run(block: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute a block that is exactly what the kernels compute.

    Args:
        block: Of a kind that :func:`.standard.difference` knows.
        x: Its input.
        dtype: That linear maps are computed in.
    """
    return _BLOCKS[type(block)](block, x, dtype)
