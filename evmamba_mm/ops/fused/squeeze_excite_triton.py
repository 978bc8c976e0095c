"""Kernels of the channel attention.

The map is read twice and written once: for the sums of its channels, and to
scale them. The two small products between are torch's.

Shape letters: B batch, H W map, C channels, E hidden channels, P programs of
a batch entry's block of channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm_triton import load_rows, store_rows
from .sums_triton import add_up
from .tiles import (
    Tile,
    as_rows,
    empty_gradient,
    pipeline_stages,
    row_tile,
    split_rows,
)

# A block of channels is enough for whole memory sectors, and makes enough
# programs of the small and wide maps that are the rule here.
_MOST_COLUMNS = 128
# What writes as much as it reads is best in larger tiles than what adds up.
_SCALE_ELEMENTS = 4096
_SUM_ELEMENTS = 1024


@triton.jit
def _place(
    programs,
    program_rows,
    C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Channels, batch entry and first row of this program, and its share."""
    program = tl.program_id(0)
    blocks: tl.constexpr = (C + COLUMNS - 1) // COLUMNS
    columns = program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    share = (program // blocks).to(tl.int64)
    entry = share // programs
    return columns, entry, share % programs * program_rows, share


@triton.jit
def _sum_kernel(
    sums_ptr,
    x_ptr,
    dout_ptr,
    logits_ptr,
    tokens,
    programs,
    x_batch_stride,
    x_stride,
    dout_batch_stride,
    dout_stride,
    steps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    columns, entry, first, share = _place(programs, steps * ROWS, C, COLUMNS)
    inside = columns < C
    x_ptr += entry * x_batch_stride
    if dout_ptr is not None:
        dout_ptr += entry * dout_batch_stride
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        if dout_ptr is not None:
            x *= load_rows(dout_ptr, rows, dout_stride, columns, mask)
        total += x
    result = tl.sum(total, axis=0)
    if dout_ptr is None:
        result /= tokens
    else:
        logits = tl.load(logits_ptr + entry * C + columns, inside, other=0.0)
        gate = tl.sigmoid(logits.to(tl.float32))
        result *= gate * (1 - gate)
    tl.store(sums_ptr + share * C + columns, result, mask=inside)


@triton.jit
def _scale_kernel(
    out_ptr,
    x_ptr,
    logits_ptr,
    dpooled_ptr,
    tokens,
    programs,
    batch_stride,
    row_stride,
    steps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns, entry, first, _ = _place(programs, steps * ROWS, C, COLUMNS)
    inside = columns < C
    logits = tl.load(logits_ptr + entry * C + columns, inside, other=0.0)
    gate = tl.sigmoid(logits.to(tl.float32))
    shift = tl.zeros((COLUMNS,), tl.float32)
    if dpooled_ptr is not None:
        place = dpooled_ptr + entry * C + columns
        shift = tl.load(place, inside, other=0.0).to(tl.float32) / tokens
    x_ptr += entry * batch_stride
    out_ptr += entry * tokens * C
    for step in range(steps):
        rows = first + step * ROWS + tl.arange(0, ROWS)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, row_stride, columns, mask)
        out = x * gate[None, :] + shift[None, :]
        store_rows(out_ptr, rows, C, columns, mask, out)


def _cut(
    shape: tuple[int, int, int], elements: int, at_least: int, waves: int
) -> tuple[Tile, int, int, int]:
    """Tile, blocks of channels, programs of a block, and their steps."""
    batch, tokens, channels = shape
    tile = row_tile(min(channels, _MOST_COLUMNS), elements)
    blocks = -(-channels // tile.columns)
    programs, steps = split_rows(
        tokens, tile.rows, at_least, groups=batch * blocks, waves=waves
    )
    return tile, blocks, programs, min(steps, -(-tokens // tile.rows))


def _channel_sums(
    x: Tensor,
    dout: Tensor | None = None,
    logits: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Mean of x, or with ``dout`` the gradient of the logits, (B, C)."""
    batch, _, channels = shape = x.shape
    tile, blocks, programs, steps = _cut(
        shape, _SUM_ELEMENTS, at_least=256, waves=2
    )
    sums = torch.empty(
        (batch, programs, channels),
        dtype=dtype if programs == 1 else torch.float32,
        device=x.device,
    )
    if batch > 0:
        strides = (
            *x.stride()[:2],
            *(x if dout is None else dout).stride()[:2],
        )
        stages = pipeline_stages(tile.rows * tile.columns, x, dout)
        launch(
            _sum_kernel,
            (batch * programs * blocks, 1, 1),
            (sums, x, dout, logits),
            (shape[1], programs, *strides, steps),
            (channels, tile.rows, tile.columns, stages),
            tile.warps,
        )
    if programs == 1:
        return sums.view(batch, channels)
    return add_up(sums, 1, dtype)


def _scale(
    out: Tensor, x: Tensor, logits: Tensor, dpooled: Tensor | None = None
) -> None:
    """Write ``x * sigmoid(logits)``, and the share of the mean's gradient."""
    batch, tokens, channels = x.shape
    tile, blocks, programs, steps = _cut(
        x.shape, _SCALE_ELEMENTS, at_least=64, waves=4
    )
    if batch > 0:
        launch(
            _scale_kernel,
            (batch * programs * blocks, 1, 1),
            (out, x, logits, dpooled),
            (tokens, programs, *x.stride()[:2], steps),
            (channels, tile.rows, tile.columns),
            tile.warps,
        )


# Autocast leaves alone what is written to a given tensor: the two products
# stay in the dtype of x.
def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = x.new_empty((x.shape[0], weight.shape[0]))
    return torch.addmm(bias.to(x.dtype), x, weight.to(x.dtype).t(), out=out)


def _product(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty((a.shape[0], b.shape[1]))
    return torch.mm(a, b.to(a.dtype), out=out)


def scale(x: Tensor, logits: Tensor) -> Tensor:
    """Map (B, H, W, C) times its gates, given before their sigmoid."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    batch, height, width, channels = x.shape
    rows = as_rows(x, (batch, height * width, channels))
    _scale(out, rows, logits.contiguous())
    return out


def gates(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch what comes before the scaling, for a map (B, H W, C).

    Returns:
        Mean of the map (B, C), hidden channels after their ReLU (B, E) and
        gates before their sigmoid (B, C), all in ``dtype``.
    """
    pooled = _channel_sums(x, dtype=dtype)
    hidden = _affine(pooled, reduce_weight, reduce_bias).relu_()
    return pooled, hidden, _affine(hidden, expand_weight, expand_bias)


def forward(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    dtype: torch.dtype,
    inner_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward.

    Returns:
        The scaled map, and what :func:`gates` returns.
    """
    batch, height, width, channels = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    x = as_rows(x, (batch, height * width, channels))
    parameters = reduce_weight, reduce_bias, expand_weight, expand_bias
    inner = gates(x, *parameters, inner_dtype)
    _scale(out, x, inner[-1])
    return out, *inner


def backward(
    dout: Tensor,
    x: Tensor,
    pooled: Tensor,
    hidden: Tensor,
    logits: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward.

    Returns:
        Gradients of the map, and of the weight and the bias of each product
        in the dtype of the means.
    """
    batch, height, width, channels = x.shape
    dx = empty_gradient(x, x)
    shape = (batch, height * width, channels)
    dout, x = as_rows(dout, shape), as_rows(x, shape)
    dlogits = _channel_sums(x, dout, logits, pooled.dtype)
    dhidden = torch.ops.aten.threshold_backward(
        _product(dlogits, expand_weight), hidden, 0
    )
    _scale(dx, dout, logits, _product(dhidden, reduce_weight))
    return (
        dx,
        _product(dhidden.t(), pooled),
        add_up(dhidden, dtype=pooled.dtype),
        _product(dlogits.t(), hidden),
        add_up(dlogits, dtype=pooled.dtype),
    )
