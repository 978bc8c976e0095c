"""Gates of an EVSS block's two branches, and their backward.

    logits = expand(gelu(reduce(mean over H W of layer_norm(x))))

The affine part of the norm commutes with the mean, so it is applied to the
means: each feature map is read once, and no normalized one is written.

Shape letters: B batch, H W feature map, T = H W tokens, C channels, E hidden
channels, P programs of an image. Tensors (2, B, ...) hold the values of the
map ``a``, then those of ``b``; the kernels count these as 2 B images.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    LIMITS,
    activate,
    activation_grad,
    as_rows,
    dense_like,
    fast_sigmoid,
    launch,
    load_channels,
    load_rows,
    normalize,
    pipeline_stages,
    row_tile,
    split_rows,
)

# More weights would not fit into the registers of a program.
_MAX_WEIGHTS = 8192
# Elements of a tile of the sums of normalized tokens.
_SUM_ELEMENTS = 1024
# Few channels a program: the parameters have little else to share out.
_PARAMETER_COLUMNS = 16


class GateGradients(NamedTuple):
    """Parts of the gradients of maps and parameters, in fp32.

    Args:
        logits: Gradients of the gates before their sigmoid, (2, B, C).
        hidden: Of the hidden channels before GELU, (2, B, E).
        pooled: Of the means after the affine part of the norm, (2, B, C).
        factor: dy/dx where the gates are held fixed, (2, B, C).
        dxhat: Gradient of each normalized token, which is the same for all
            tokens of a map, less its mean over the channels, (2, B, C).
    """

    logits: Tensor
    hidden: Tensor
    pooled: Tensor
    factor: Tensor
    dxhat: Tensor


# sums[image, p] = sum over the tokens of program p of xhat
@triton.jit
def _xhat_sum_kernel(
    sums_ptr,
    a_ptr,
    b_ptr,
    batch,
    tokens,
    programs,
    image_stride,
    row_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    program = tl.program_id(0)
    image = (program // programs).to(tl.int64)
    first = (program % programs).to(tl.int64) * steps * BLOCK_M
    x_ptr = a_ptr
    if b_ptr is not None:
        if image >= batch:
            x_ptr = b_ptr
            image -= batch
    x_ptr += image * image_stride
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for step in tl.range(steps, num_stages=NUM_STAGES):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, row_stride, columns, mask)
        xhat, _ = normalize(x, inside, eps, C)
        # Without eps, a row outside is 0 * inf.
        total += tl.where(mask, xhat, 0.0)
    offsets = program.to(tl.int64) * C + columns
    tl.store(sums_ptr + offsets, tl.sum(total, axis=0), mask=inside)


@triton.jit
def _sum_programs(
    sums_ptr,
    programs,
    columns,
    inside,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum over the programs of an image, (BLOCK_C,)."""
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, programs, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        mask = (rows < programs)[:, None] & inside[None, :]
        total += load_rows(sums_ptr, rows, C, columns, mask)
    return tl.sum(total, axis=0)


# mean = sum over p of sums[p] / T
# hidden = reduce @ (mean * norm_weight + norm_bias) + reduce_bias
# logits = expand @ gelu(hidden) + expand_bias
# One program an image; it holds both weights in registers.
@triton.jit
def _gates_kernel(
    logits_ptr,
    mean_ptr,
    hidden_ptr,
    sums_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    reduce_ptr,
    reduce_bias_ptr,
    expand_ptr,
    expand_bias_ptr,
    tokens,
    programs,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    units = tl.arange(0, BLOCK_E)
    live = units < E
    # Loaded before the sums, so as not to wait for them.
    mask = live[:, None] & inside[None, :]
    reduce = load_rows(reduce_ptr, units, C, columns, mask)
    mask = inside[:, None] & live[None, :]
    expand = load_rows(expand_ptr, columns, E, units, mask)
    image = tl.program_id(0).to(tl.int64)
    sums_ptr += image * programs * C
    mean = _sum_programs(
        sums_ptr, programs, columns, inside, C, BLOCK_M, BLOCK_C
    )
    mean /= tokens
    if mean_ptr is not None:
        tl.store(mean_ptr + image * C + columns, mean, mask=inside)
    pooled = mean * load_channels(norm_weight_ptr, columns, C)
    pooled += load_channels(norm_bias_ptr, columns, C)
    hidden = tl.sum(reduce * pooled[None, :], axis=1)
    hidden += load_channels(reduce_bias_ptr, units, E)
    if hidden_ptr is not None:
        tl.store(hidden_ptr + image * E + units, hidden, mask=live)
    hidden = activate(hidden, 'gelu')
    logits = tl.sum(expand * hidden[None, :], axis=1)
    logits += load_channels(expand_bias_ptr, columns, C)
    tl.store(logits_ptr + image * C + columns, logits, mask=inside)


@triton.jit
def sigmoid_factor(
    logits_ptr, scale_ptr, image, batch, columns, C: tl.constexpr
):
    """``scale * sigmoid(logits)`` of an image, and the sigmoid alone."""
    gate = fast_sigmoid(load_channels(logits_ptr + image * C, columns, C))
    factor = gate
    if scale_ptr is not None:
        factor *= tl.load(scale_ptr + image % batch).to(tl.float32)
    return factor, gate


# gate = sigmoid(logits), factor = scale * gate
# dlogits = sum(dy * x) * factor * (1 - gate)
# dhidden = (expand.T @ dlogits) * gelu'(hidden)
# dpooled = reduce.T @ dhidden
# dxhat = dpooled * norm_weight / T, less its mean over the channels
# One program an image; it holds both weights in registers.
@triton.jit
def _gates_backward_kernel(
    dlogits_ptr,
    dhidden_ptr,
    dpooled_ptr,
    factor_ptr,
    dxhat_ptr,
    sums_ptr,
    logits_ptr,
    hidden_ptr,
    norm_weight_ptr,
    reduce_ptr,
    expand_ptr,
    scale_ptr,
    batch,
    tokens,
    programs,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    units = tl.arange(0, BLOCK_E)
    live = units < E
    # Loaded before the sums, so as not to wait for them.
    mask = live[:, None] & inside[None, :]
    reduce = load_rows(reduce_ptr, units, C, columns, mask)
    mask = inside[:, None] & live[None, :]
    expand = load_rows(expand_ptr, columns, E, units, mask)
    image = tl.program_id(0).to(tl.int64)
    sums_ptr += image * programs * C
    total = _sum_programs(
        sums_ptr, programs, columns, inside, C, BLOCK_M, BLOCK_C
    )
    offsets = image * C + columns
    factor, gate = sigmoid_factor(
        logits_ptr, scale_ptr, image, batch, columns, C
    )
    tl.store(factor_ptr + offsets, factor, mask=inside)
    dlogits = total * factor * (1 - gate)
    tl.store(dlogits_ptr + offsets, dlogits, mask=inside)
    hidden = load_channels(hidden_ptr + image * E, units, E)
    dhidden = tl.sum(expand * dlogits[:, None], axis=0)
    dhidden *= activation_grad(hidden, 'gelu')
    tl.store(dhidden_ptr + image * E + units, dhidden, mask=live)
    dpooled = tl.sum(reduce * dhidden[:, None], axis=0)
    tl.store(dpooled_ptr + offsets, dpooled, mask=inside)
    dxhat = dpooled * load_channels(norm_weight_ptr, columns, C) / tokens
    dxhat -= tl.sum(dxhat, axis=0) / C
    tl.store(dxhat_ptr + offsets, dxhat, mask=inside)


# Sums over both maps of all images:
# dnorm_weight = sum(dpooled * mean)
# dnorm_bias = sum(dpooled)
# dexpand_bias = sum(dlogits)
@triton.jit
def _channel_gradients(
    dnorm_weight_ptr,
    dnorm_bias_ptr,
    dexpand_bias_ptr,
    dlogits_ptr,
    dpooled_ptr,
    mean_ptr,
    images,
    columns,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write gradients that have one value a channel."""
    inside = columns < C
    dnorm_weight = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dnorm_bias = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dexpand_bias = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, images, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M).to(tl.int64)
        mask = (rows < images)[:, None] & inside[None, :]
        dpooled = load_rows(dpooled_ptr, rows, C, columns, mask)
        dnorm_weight += dpooled * load_rows(mean_ptr, rows, C, columns, mask)
        dnorm_bias += dpooled
        dexpand_bias += load_rows(dlogits_ptr, rows, C, columns, mask)
    places = dnorm_weight_ptr + columns
    tl.store(places, tl.sum(dnorm_weight, axis=0), mask=inside)
    places = dnorm_bias_ptr + columns
    tl.store(places, tl.sum(dnorm_bias, axis=0), mask=inside)
    places = dexpand_bias_ptr + columns
    tl.store(places, tl.sum(dexpand_bias, axis=0), mask=inside)


# Sums over both maps of all images, pooled = mean * norm_weight + norm_bias:
# dreduce[e] = sum(dhidden[e] * pooled)
# dreduce_bias[e] = sum(dhidden[e])
# dexpand[:, e] = sum(dlogits * gelu(hidden[e]))
# A program has one hidden channel e; those with e = E do _channel_gradients.
@triton.jit
def _parameters_kernel(
    dnorm_weight_ptr,
    dnorm_bias_ptr,
    dreduce_ptr,
    dreduce_bias_ptr,
    dexpand_ptr,
    dexpand_bias_ptr,
    dlogits_ptr,
    dhidden_ptr,
    dpooled_ptr,
    mean_ptr,
    hidden_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    images,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = columns < C
    unit = tl.program_id(1)
    if unit == E:
        _channel_gradients(
            dnorm_weight_ptr, dnorm_bias_ptr, dexpand_bias_ptr, dlogits_ptr,
            dpooled_ptr, mean_ptr, images, columns, C, BLOCK_M, BLOCK_C,
        )  # fmt: skip
    else:
        norm_weight = load_channels(norm_weight_ptr, columns, C)
        norm_bias = load_channels(norm_bias_ptr, columns, C)
        dreduce = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        dexpand = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        dreduce_bias = tl.zeros((BLOCK_M,), tl.float32)
        for first in range(0, images, BLOCK_M):
            rows = first + tl.arange(0, BLOCK_M).to(tl.int64)
            mask = (rows < images)[:, None] & inside[None, :]
            offsets = rows * E + unit
            hidden = tl.load(hidden_ptr + offsets, rows < images, other=0.0)
            hidden = activate(hidden, 'gelu')
            dlogits = load_rows(dlogits_ptr, rows, C, columns, mask)
            dexpand += dlogits * hidden[:, None]
            dhidden = tl.load(dhidden_ptr + offsets, rows < images, other=0.0)
            mean = load_rows(mean_ptr, rows, C, columns, mask)
            pooled = mean * norm_weight[None, :] + norm_bias[None, :]
            dreduce += pooled * dhidden[:, None]
            dreduce_bias += dhidden
        places = dreduce_ptr + unit * C + columns
        tl.store(places, tl.sum(dreduce, axis=0), mask=inside)
        places = dexpand_ptr + columns * E + unit
        tl.store(places, tl.sum(dexpand, axis=0), mask=inside)
        total = tl.sum(dreduce_bias, axis=0)
        place = dreduce_bias_ptr + unit
        tl.store(place, total, mask=tl.program_id(0) == 0)


def _xhat_sums(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Sums of the normalized tokens of each program, (2, B, P, C) in fp32."""
    batch, height, width, channels = a.shape
    shape = (batch, height * width, channels)
    tile = row_tile(channels, _SUM_ELEMENTS)
    programs, steps = split_rows(
        shape[1],
        tile.rows,
        at_least=16,
        groups=batch,
        waves=2,
        programs=-(-LIMITS.partial_sums // batch),
    )
    sums = torch.empty(
        (2, batch, programs, channels), dtype=torch.float32, device=a.device
    )
    a, b = as_rows(a, shape), as_rows(b, shape)
    if a.dtype == b.dtype and a.stride() == b.stride():
        launches = ((sums, a, b),)
    else:
        launches = ((sums[0], a, None), (sums[1], b, None))
    for out, x, second in launches:
        stages = pipeline_stages(tile.rows * tile.columns, x)
        launch(
            _xhat_sum_kernel,
            (out.numel() // channels, 1, 1),
            (out, x, second),
            (batch, shape[1], programs, *x.stride()[:2], steps, float(eps)),
            (channels, tile.rows, tile.columns, stages),
            tile.warps,
        )
    return sums


def _weights_tile(channels: int, hidden: int) -> tuple[int, int, int, int]:
    """BLOCK_M, BLOCK_C, BLOCK_E and warps of a program with the weights."""
    tile = row_tile(channels)
    units = 1 << (hidden - 1).bit_length()
    warps = max(tile.warps, units * tile.columns // 1024)
    return tile.rows, tile.columns, units, warps


def gates_fit(channels: int, hidden: int) -> bool:
    """Whether a program can hold a weight, padded to powers of two.

    Args:
        channels: C.
        hidden: E.
    """
    bits = max(4, (channels - 1).bit_length()) + (hidden - 1).bit_length()
    return 1 << bits <= _MAX_WEIGHTS


def gates_forward(
    a: Tensor,
    b: Tensor,
    eps: float,
    parameters: tuple[Tensor, ...],
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gates before their sigmoid, and what the backward needs, in fp32.

    Args:
        a: Feature map (B, H, W, C), B, H and W at least 1.
        b: Feature map of this shape.
        eps: Added to the variance.
        parameters: Weight and bias of the norm, of reduce and of expand.
        keep: Whether a backward follows.

    Returns:
        Logits (2, B, C), and if ``keep``, the means of the normalized tokens
        (2, B, C) and the hidden channels before GELU (2, B, E).
    """
    batch, height, width, channels = a.shape
    hidden_channels = len(parameters[2])
    sums = _xhat_sums(a, b, eps)
    logits = sums.new_empty((2, batch, channels))
    mean = torch.empty_like(logits) if keep else None
    hidden = logits.new_empty((2, batch, hidden_channels)) if keep else None
    *blocks, warps = _weights_tile(channels, hidden_channels)
    launch(
        _gates_kernel,
        (2 * batch, 1, 1),
        (logits, mean, hidden, sums, *(x.contiguous() for x in parameters)),
        (height * width, sums.shape[2]),
        (channels, hidden_channels, *blocks),
        warps,
    )
    return logits, mean, hidden


def gates_backward(
    sums: Tensor,
    tokens: int,
    logits: Tensor,
    hidden: Tensor,
    parameters: tuple[Tensor, ...],
    scale: Tensor | None,
) -> GateGradients:
    """From the sums of dy * x back to the normalized tokens.

    Args:
        sums: Sums over the tokens of each program, (2, B, P, C) in fp32.
        tokens: T.
        logits: See :func:`gates_forward`.
        hidden: See there.
        parameters: See there.
        scale: Factor of each image of the gated maps, (B,), or None.
    """
    _, batch, programs, channels = sums.shape
    norm_weight, _, reduce_weight, _, expand_weight, _ = parameters
    gradients = GateGradients(
        torch.empty_like(logits),
        torch.empty_like(hidden),
        *(torch.empty_like(logits) for _ in range(3)),
    )
    weights = [
        x.contiguous() for x in (norm_weight, reduce_weight, expand_weight)
    ]
    scale = None if scale is None else scale.contiguous()
    *blocks, warps = _weights_tile(channels, hidden.shape[2])
    launch(
        _gates_backward_kernel,
        (2 * batch, 1, 1),
        (*gradients, sums, logits, hidden, *weights, scale),
        (batch, tokens, programs),
        (channels, hidden.shape[2], *blocks),
        warps,
    )
    return gradients


def parameters_backward(
    gradients: GateGradients,
    mean: Tensor,
    hidden: Tensor,
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Gradient of each parameter, in its shape and dtype.

    Args:
        gradients: Result of :func:`gates_backward`.
        mean: See :func:`gates_forward`.
        hidden: See there.
        parameters: See there.
    """
    maps, batch, channels = mean.shape
    hidden_channels = hidden.shape[2]
    dparameters = tuple(dense_like(x, x.dtype) for x in parameters)
    norm = (x.contiguous() for x in parameters[:2])
    tile = row_tile(min(channels, _PARAMETER_COLUMNS))
    launch(
        _parameters_kernel,
        (-(-channels // tile.columns), hidden_channels + 1, 1),
        (*dparameters, *gradients[:3], mean, hidden, *norm),
        (maps * batch,),
        (channels, hidden_channels, tile.rows, tile.columns),
        tile.warps,
    )
    return dparameters
