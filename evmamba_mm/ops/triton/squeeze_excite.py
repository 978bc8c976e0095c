"""Channel attention of the inverted residual.

    y = x * sigmoid(logits)
    logits = expand(relu(reduce(mean over H W of x)))

The map is read twice, or once if its mean is given, and written once; the two
small products are torch's. A BatchNorm with ReLU before it is computed where
the map is read.

Shape letters: B batch, H W feature map, T = H W tokens, C channels, E hidden
channels, P programs of an image's block of channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch_norm import (
    ChannelNorm,
    load_norm,
    norm_arguments,
    norm_relu_backward,
)
from .common import (
    Tile,
    activate,
    as_rows,
    dense_like,
    fast_sigmoid,
    launch,
    load_channels,
    load_rows,
    once_differentiable,
    pipeline_stages,
    row_tile,
    split_rows,
    store_rows,
)
from .sums import sum_parts

# A block of channels is enough for whole memory sectors, and makes enough
# programs of the small and wide maps that are the rule here.
_MAX_COLUMNS = 128
# A kernel that writes as much as it reads is best in larger tiles than one
# that adds up.
_SCALE_ELEMENTS = 4096
_SUM_ELEMENTS = 1024


@triton.jit
def _locate(programs, program_rows, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels, image and first row of this program, and its partial sum."""
    program = tl.program_id(0)
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    columns = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    part = (program // blocks).to(tl.int64)
    image = part // programs
    return columns, image, part % programs * program_rows, part


@triton.jit
def _load_map(
    x_ptr, rows, stride, columns, mask, shift, scale, bias, NORM: tl.constexpr
):
    """Tile of x, or of ``relu((x - shift) * scale + bias)``, in fp32."""
    x = load_rows(x_ptr, rows, stride, columns, mask)
    if NORM:
        # That of the zeros outside is not zero.
        x = tl.where(mask, activate((x - shift) * scale + bias, 'relu'), 0.0)
    return x


# Forward: sums[image, p] = sum over the tokens of program p of x / T
# Backward: sums[image, p] = sum of x * dy, times gate * (1 - gate)
@triton.jit
def _sum_kernel(
    sums_ptr,
    x_ptr,
    dy_ptr,
    logits_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    tokens,
    programs,
    x_image_stride,
    x_stride,
    dy_image_stride,
    dy_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    columns, image, first, part = _locate(
        programs, steps * BLOCK_M, C, BLOCK_C
    )
    inside = columns < C
    x_ptr += image * x_image_stride
    if dy_ptr is not None:
        dy_ptr += image * dy_image_stride
    shift, scale, bias = 0.0, 1.0, 0.0
    if weight_ptr is not None:
        shift, _, scale, bias = load_norm(
            weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, columns, C
        )
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for step in tl.range(steps, num_stages=NUM_STAGES):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = _load_map(
            x_ptr, rows, x_stride, columns, mask, shift, scale, bias,
            weight_ptr is not None,
        )  # fmt: skip
        if dy_ptr is not None:
            x *= load_rows(dy_ptr, rows, dy_stride, columns, mask)
        total += x
    result = tl.sum(total, axis=0)
    if dy_ptr is None:
        result /= tokens
    else:
        gate = fast_sigmoid(load_channels(logits_ptr + image * C, columns, C))
        result *= gate * (1 - gate)
    tl.store(sums_ptr + part * C + columns, result, mask=inside)


# Forward: y = x * sigmoid(logits)
# Backward, with dy for x: dx = dy * sigmoid(logits) + dmean / T
@triton.jit
def _scale_kernel(
    y_ptr,
    x_ptr,
    logits_ptr,
    dmean_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    tokens,
    programs,
    image_stride,
    row_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns, image, first, _ = _locate(programs, steps * BLOCK_M, C, BLOCK_C)
    inside = columns < C
    gate = fast_sigmoid(load_channels(logits_ptr + image * C, columns, C))
    dmean = tl.zeros((BLOCK_C,), tl.float32)
    if dmean_ptr is not None:
        dmean = load_channels(dmean_ptr + image * C, columns, C) / tokens
    shift, scale, bias = 0.0, 1.0, 0.0
    if weight_ptr is not None:
        shift, _, scale, bias = load_norm(
            weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, columns, C
        )
    x_ptr += image * image_stride
    y_ptr += image * tokens * C
    for step in range(steps):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = _load_map(
            x_ptr, rows, row_stride, columns, mask, shift, scale, bias,
            weight_ptr is not None,
        )  # fmt: skip
        y = x * gate[None, :] + dmean[None, :]
        store_rows(y_ptr, rows, C, columns, mask, y)


def _share_out(
    shape: tuple[int, int, int], elements: int, at_least: int, waves: int
) -> tuple[Tile, int, int, int]:
    """Tile, blocks of channels, programs of a block, and their steps."""
    batch, tokens, channels = shape
    tile = row_tile(min(channels, _MAX_COLUMNS), elements)
    blocks = -(-channels // tile.columns)
    programs, steps = split_rows(
        tokens, tile.rows, at_least, groups=batch * blocks, waves=waves
    )
    return tile, blocks, programs, min(steps, -(-tokens // tile.rows))


def _channel_sums(
    x: Tensor,
    dtype: torch.dtype,
    norm: ChannelNorm | None,
    dy: Tensor | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """Mean of x (B, T, C), or with ``dy`` the gradient of the logits."""
    batch, tokens, channels = x.shape
    tile, blocks, programs, steps = _share_out(
        x.shape, _SUM_ELEMENTS, at_least=256, waves=2
    )
    sums = torch.empty(
        (batch, programs, channels),
        dtype=dtype if programs == 1 else torch.float32,
        device=x.device,
    )
    if batch > 0:
        strides = *x.stride()[:2], *(x if dy is None else dy).stride()[:2]
        stages = pipeline_stages(tile.rows * tile.columns, x, dy)
        vectors, eps = norm_arguments(norm)
        launch(
            _sum_kernel,
            (batch * programs * blocks, 1, 1),
            (sums, x, dy, logits, *vectors),
            (tokens, programs, *strides, steps, eps),
            (channels, tile.rows, tile.columns, stages),
            tile.warps,
        )
    return sum_parts(sums, 1, dtype)


def _scale(
    y: Tensor,
    x: Tensor,
    logits: Tensor,
    norm: ChannelNorm | None,
    dmean: Tensor | None = None,
) -> None:
    """Write ``x * sigmoid(logits)``, and the share of the mean's gradient."""
    batch, tokens, channels = x.shape
    tile, blocks, programs, steps = _share_out(
        x.shape, _SCALE_ELEMENTS, at_least=64, waves=4
    )
    if batch > 0:
        vectors, eps = norm_arguments(norm)
        launch(
            _scale_kernel,
            (batch * programs * blocks, 1, 1),
            (y, x, logits, dmean, *vectors),
            (tokens, programs, *x.stride()[:2], steps, eps),
            (channels, tile.rows, tile.columns),
            tile.warps,
        )


# Autocast leaves alone what is written to a given tensor: the products stay
# in the dtype of x.
def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = x.new_empty((x.shape[0], weight.shape[0]))
    return torch.addmm(bias.to(x.dtype), x, weight.to(x.dtype).t(), out=y)


def _product(a: Tensor, b: Tensor) -> Tensor:
    y = a.new_empty((a.shape[0], b.shape[1]))
    return torch.mm(a, b.to(a.dtype), out=y)


def _as_rows(x: Tensor) -> Tensor:
    """A feature map (B, H, W, C) as (B, T, C)."""
    batch, height, width, channels = x.shape
    return as_rows(x, (batch, height * width, channels))


def _gates(
    x: Tensor,
    norm: ChannelNorm | None,
    mean: Tensor | None,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (B, C), hidden (B, E) after ReLU and logits (B, C) of rows."""
    reduce_weight, reduce_bias, expand_weight, expand_bias = parameters
    if mean is None:
        mean = _channel_sums(x, reduce_weight.dtype, norm)
    hidden = _linear(mean, reduce_weight, reduce_bias).relu_()
    return mean, hidden, _linear(hidden, expand_weight, expand_bias)


def _forward(
    x: Tensor,
    dtype: torch.dtype,
    norm: ChannelNorm | None,
    mean: Tensor | None,
    *parameters: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The scaled map, and what the backward needs."""
    y = dense_like(x, dtype)
    rows = _as_rows(x)
    inner = _gates(rows, norm, mean, *parameters)
    _scale(y, rows, inner[-1], norm)
    return y, inner


class _SqueezeExcite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dtype, settings, *tensors):
        ctx.settings = settings
        norm = ChannelNorm(*tensors[:4], *settings) if settings else None
        y, inner = _forward(x, dtype, norm, None, *tensors[-4:])
        ctx.save_for_backward(x, *inner, *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, mean, hidden, logits, *tensors = ctx.saved_tensors
        reduce_weight, _, expand_weight, _ = tensors[-4:]
        settings = ctx.settings
        norm = ChannelNorm(*tensors[:4], *settings) if settings else None
        dx = dense_like(x, x.dtype)
        rows, dy = _as_rows(x), _as_rows(dy)
        dlogits = _channel_sums(rows, mean.dtype, norm, dy, logits)
        dhidden = torch.ops.aten.threshold_backward(
            _product(dlogits, expand_weight), hidden, 0
        )
        _scale(dx, dy, logits, None, _product(dhidden, reduce_weight))
        dparameters = (
            _product(dhidden.t(), mean),
            sum_parts(dhidden, dtype=mean.dtype),
            _product(dlogits.t(), hidden),
            sum_parts(dlogits, dtype=mean.dtype),
        )
        pairs = zip(dparameters, tensors[-4:], strict=True)
        dx, *dnorm = norm_relu_backward(dx, x, norm)
        return dx, None, None, *dnorm, *(dw.to(w.dtype) for dw, w in pairs)


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    dtype: torch.dtype,
    mean: Tensor | None = None,
    norm_relu: ChannelNorm | None = None,
) -> Tensor:
    """Scale the channels of a map by gates made of its mean.

    The gates are ``sigmoid(expand(relu(reduce(mean))))`` with the two linear
    maps given, computed in the dtype of ``reduce_weight``.

    Args:
        x: Feature map (B, H, W, C), H and W at least 1.
        reduce_weight: From channels to hidden channels, (E, C).
        reduce_bias: (E,).
        expand_weight: From hidden channels to channels, (C, E).
        expand_bias: (C,).
        dtype: Of the result.
        mean: Of the pixels of ``x``, (B, C) in the dtype of
            ``reduce_weight``, to save a pass where no gradient is needed.
        norm_relu: Norm of x before all this, with ReLU, or None; its result
            is not stored.

    Returns:
        Feature map of the shape of ``x``.

    Source: SENet (arXiv:1709.01507).
    """
    parameters = reduce_weight, reduce_bias, expand_weight, expand_bias
    if not torch.is_grad_enabled():
        return _forward(x, dtype, norm_relu, mean, *parameters)[0]
    norm = () if norm_relu is None else norm_relu
    return _SqueezeExcite.apply(x, dtype, norm[4:], *norm[:4], *parameters)
