"""Layer norm of tokens, alone, times a gate, and of merged 2x2 neighbours.

A program holds whole rows in registers, so the statistics cost no memory
traffic; the backward recomputes them instead of reading them.

Shape letters: B batch, H W feature map, C channels, M tokens, P programs.

Sources: Layer Normalization (arXiv:1607.06450); the gated form is the output
of VMamba's mixer (arXiv:2401.10166); the merging of neighbours is that of
Swin Transformer (arXiv:2103.14030).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import (
    Tile,
    as_rows,
    dense_like,
    fast_sigmoid,
    launch,
    load_channels,
    load_rows,
    normalize,
    normalize_backward,
    once_differentiable,
    pipeline_stages,
    row_tile,
    split_rows,
    store_rows,
)
from .sums import sum_parts

# The gradients fill more registers: more programs that are smaller. With a
# gate in half precision larger tiles were faster in a search on an H200.
_BACKWARD_ELEMENTS, _GATED_ELEMENTS = 1024, 2048


@triton.jit
def _forward_kernel(
    y_ptr,
    x_ptr,
    gate_ptr,
    weight_ptr,
    bias_ptr,
    tokens,
    x_stride,
    gate_stride,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``y = (xhat * weight + bias) * silu(gate)``, or without the gate."""
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    weight = load_channels(weight_ptr, columns, C)
    bias = load_channels(bias_ptr, columns, C)
    first = tl.program_id(0).to(tl.int64) * steps * BLOCK_M
    for step in range(steps):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        if gate_ptr is not None:
            gate = load_rows(gate_ptr, rows, gate_stride, columns, mask)
        xhat, _ = normalize(x, inside, eps, C)
        y = xhat * weight[None, :] + bias[None, :]
        if gate_ptr is not None:
            y *= gate * fast_sigmoid(gate)
        store_rows(y_ptr, rows, C, columns, mask, y)


@triton.jit
def _backward_kernel(
    dx_ptr, dgate_ptr, z_ptr, sums_ptr, dy_ptr, x_ptr, gate_ptr,
    weight_ptr, bias_ptr, tokens, dy_stride, x_stride, gate_stride, steps,
    eps, C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of ``z = y * silu(gate)`` with ``y = xhat * weight + bias``.

    ``dgate = dz * y * silu'(gate)``, ``dy = dz * silu(gate)``, ``dweight =
    sum_m dy * xhat``, ``dbias = sum_m dy``, and dx of the norm for ``dxhat =
    dy * weight``. Also writes z where a place for it is given.
    """
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    weight = load_channels(weight_ptr, columns, C)
    if gate_ptr is not None:
        bias = load_channels(bias_ptr, columns, C)
    dweight = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * BLOCK_M
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < tokens)[:, None] & inside[None, :]
        x = load_rows(x_ptr, rows, x_stride, columns, mask)
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        if gate_ptr is not None:
            gate = load_rows(gate_ptr, rows, gate_stride, columns, mask)
        xhat, rstd = normalize(x, inside, eps, C)
        if gate_ptr is not None:
            sigmoid = fast_sigmoid(gate)
            y = xhat * weight[None, :] + bias[None, :]
            dgate = dy * y * sigmoid * (1 + gate * (1 - sigmoid))
            store_rows(dgate_ptr, rows, C, columns, mask, dgate)
            silu = gate * sigmoid
            if z_ptr is not None:
                store_rows(z_ptr, rows, C, columns, mask, y * silu)
            dy *= silu
        # With an eps of 0, xhat of a row outside is NaN.
        dweight += tl.where(mask, dy * xhat, 0.0)
        dbias += dy
        dx = normalize_backward(dy * weight[None, :], xhat, rstd, C)
        store_rows(dx_ptr, rows, C, columns, mask, dx)
    places = sums_ptr + tl.program_id(0) * (2 * C) + columns
    tl.store(places, tl.sum(dweight, axis=0), mask=inside)
    tl.store(places + C, tl.sum(dbias, axis=0), mask=inside)


@triton.jit
def _locate_neighbours(rows, columns, height, width, C: tl.constexpr):
    """Offset in x (B, H, W, C) of each channel of cells (M, 4C).

    Channel ``n * C + c`` of a cell is channel c of its neighbour n, in the
    order (0, 0), (1, 0), (0, 1), (1, 1). The mask is False in the padding.
    """
    down = (columns // C % 2)[None, :]
    right = (columns // C // 2)[None, :]
    cells_across = (width + 1) // 2
    cells_down = (height + 1) // 2
    cell = rows[:, None]
    row = cell // cells_across % cells_down * 2 + down
    column = cell % cells_across * 2 + right
    image = cell // cells_across // cells_down
    pixel = (image * height + row) * width + column
    exists = (row < height) & (column < width)
    return pixel * C + (columns % C)[None, :], exists


@triton.jit
def _merge_forward_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    cells,
    height,
    width,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``y = xhat * weight + bias`` of the 4C channels of each cell."""
    columns = tl.arange(0, BLOCK_C)
    inside = columns < 4 * C
    weight = load_channels(weight_ptr, columns, 4 * C)
    bias = load_channels(bias_ptr, columns, 4 * C)
    first = tl.program_id(0).to(tl.int64) * steps * BLOCK_M
    for step in range(steps):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < cells)[:, None] & inside[None, :]
        offset, exists = _locate_neighbours(rows, columns, height, width, C)
        x = tl.load(x_ptr + offset, mask & exists, other=0.0)
        xhat, _ = normalize(x.to(tl.float32), inside, eps, 4 * C)
        y = xhat * weight[None, :] + bias[None, :]
        store_rows(y_ptr, rows, 4 * C, columns, mask, y)


@triton.jit
def _merge_backward_kernel(
    dx_ptr,
    sums_ptr,
    dy_ptr,
    x_ptr,
    weight_ptr,
    cells,
    dy_stride,
    height,
    width,
    steps,
    eps,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As ``_backward_kernel`` without a gate; dx goes where x came from."""
    columns = tl.arange(0, BLOCK_C)
    inside = columns < 4 * C
    weight = load_channels(weight_ptr, columns, 4 * C)
    dweight = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    first = tl.program_id(0).to(tl.int64) * steps * BLOCK_M
    for step in tl.range(steps, num_stages=STAGES):
        rows = first + step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < cells)[:, None] & inside[None, :]
        offset, exists = _locate_neighbours(rows, columns, height, width, C)
        exists &= mask
        x = tl.load(x_ptr + offset, exists, other=0.0).to(tl.float32)
        dy = load_rows(dy_ptr, rows, dy_stride, columns, mask)
        xhat, rstd = normalize(x, inside, eps, 4 * C)
        # With an eps of 0, xhat of a row outside is NaN.
        dweight += tl.where(mask, dy * xhat, 0.0)
        dbias += dy
        dx = normalize_backward(dy * weight[None, :], xhat, rstd, 4 * C)
        tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), exists)
    places = sums_ptr + tl.program_id(0) * (8 * C) + columns
    tl.store(places, tl.sum(dweight, axis=0), mask=inside)
    tl.store(places + 4 * C, tl.sum(dbias, axis=0), mask=inside)


def norm_forward(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    overwrite: bool = False,
) -> Tensor:
    """Launch the layer norm times ``silu(gate)``; autograd does not see it.

    Args:
        x: Tokens (..., C).
        gate: Gate before its activation, of the shape of ``x``, or None.
        weight: Scale (C,).
        bias: Shift (C,).
        eps: Added to the variance.
        dtype: Dtype of the result.
        overwrite: Whether the result may take the memory of ``x``.

    Returns:
        Dense tensor of the shape of ``x``.
    """
    assert weight.shape == bias.shape == x.shape[-1:]
    assert gate is None or gate.shape == x.shape
    channels = x.shape[-1]
    overwrite = overwrite and x.dtype == dtype and x.is_contiguous()
    y = x if overwrite else dense_like(x, dtype)
    if y.numel() == 0:
        return y
    x, _ = maps = [
        None if map_ is None else as_rows(map_, (-1, channels))
        for map_ in (x, gate)
    ]
    tile = row_tile(channels)
    programs, steps = split_rows(x.shape[0], tile.rows, at_least=8)
    strides = [0 if map_ is None else map_.stride(0) for map_ in maps]
    launch(
        _forward_kernel,
        (programs, 1, 1),
        (y, *maps, weight.contiguous(), bias.contiguous()),
        (x.shape[0], *strides, steps, float(eps)),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )
    return y


def _backward_tile(channels: int, gate: Tensor | None = None) -> Tile:
    if gate is None or gate.element_size() > 2:
        return row_tile(channels, _BACKWARD_ELEMENTS)
    tile = row_tile(channels, _GATED_ELEMENTS)
    return tile._replace(warps=max(1, tile.warps // 2))


def _split_backward(tokens: int, tile: Tile) -> tuple[int, int]:
    """Programs of a norm's backward, and steps of a program."""
    return split_rows(
        tokens,
        tile.rows,
        at_least=16,
        waves=2,
        programs=common.LIMITS.partial_sums,
    )


def norm_backward(
    dy: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    z: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Launch the backward of :func:`norm_forward`.

    Args:
        dy: Gradient of the result.
        x: Tokens (..., C).
        gate: Its gate, or None.
        weight: Scale (C,).
        bias: Shift (C,).
        eps: Added to the variance.
        z: Dense memory to write the result of the forward to once more, of
            the shape of ``x``, or None. It needs a gate.

    Returns:
        dx; dgate, or None without a gate; dweight and dbias, (2, C) in fp32.
    """
    assert dy.shape == x.shape
    channels = x.shape[-1]
    dx = dense_like(x, x.dtype)
    dgate = None if gate is None else dense_like(gate, gate.dtype)
    *_, x, _ = maps = [
        None if map_ is None else as_rows(map_, (-1, channels))
        for map_ in (dy, x, gate)
    ]
    tile = _backward_tile(channels, gate)
    programs, steps = _split_backward(x.shape[0], tile)
    sums = torch.empty(
        (programs, 2, channels), dtype=torch.float32, device=x.device
    )
    if programs > 0:
        strides = [0 if map_ is None else map_.stride(0) for map_ in maps]
        stages = pipeline_stages(tile.rows * tile.columns, *maps)
        launch(
            _backward_kernel,
            (programs, 1, 1),
            (
                dx,
                dgate,
                z,
                sums,
                *maps,
                weight.contiguous(),
                bias.contiguous(),
            ),
            (x.shape[0], *strides, steps, float(eps)),
            (channels, tile.rows, tile.columns, stages),
            tile.warps,
        )
    return dx, dgate, sum_parts(sums)


def _merge_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    batch, height, width, channels = x.shape
    assert weight.shape == bias.shape == (4 * channels,)
    shape = (batch, (height + 1) // 2, (width + 1) // 2, 4 * channels)
    y = torch.empty(shape, dtype=dtype, device=x.device)
    if y.numel() == 0:
        return y
    cells = batch * shape[1] * shape[2]
    tile = row_tile(shape[3])
    programs, steps = split_rows(cells, tile.rows, at_least=8)
    launch(
        _merge_forward_kernel,
        (programs, 1, 1),
        (y, x.contiguous(), weight.contiguous(), bias.contiguous()),
        (cells, height, width, steps, float(eps)),
        (channels, tile.rows, tile.columns),
        tile.warps,
    )
    return y


def _merge_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of weight and bias, (2, 4C) in fp32."""
    _, height, width, channels = x.shape
    dx = dense_like(x, x.dtype)
    dy = as_rows(dy, (-1, 4 * channels))
    tile = _backward_tile(4 * channels)
    programs, steps = _split_backward(len(dy), tile)
    sums = torch.empty(
        (programs, 2, 4 * channels), dtype=torch.float32, device=x.device
    )
    if programs > 0:
        stages = pipeline_stages(tile.rows * tile.columns, dy, x)
        launch(
            _merge_backward_kernel,
            (programs, 1, 1),
            (dx, sums, dy, x.contiguous(), weight.contiguous()),
            (len(dy), dy.stride(0), height, width, steps, float(eps)),
            (channels, tile.rows, tile.columns, stages),
            tile.warps,
        )
    return dx, sum_parts(sums)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return norm_forward(x, None, weight, bias, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        dx, _, (dweight, dbias) = norm_backward(
            dy, x, None, weight, bias, ctx.eps
        )
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None, None


class _MergeLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.bias_dtype = eps, bias.dtype
        return _merge_forward(x, weight, bias, eps, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx, (dweight, dbias) = _merge_backward(dy, x, weight, ctx.eps)
        return (
            dx,
            dweight.to(weight.dtype),
            dbias.to(ctx.bias_dtype),
            None,
            None,
        )


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Layer norm over the last dimension, computed in fp32.

    Args:
        x: Tokens (..., C).
        weight: Scale (C,).
        bias: Shift (C,).
        eps: Added to the variance.
        dtype: Dtype of the result.

    Returns:
        Dense tensor of the shape of ``x``.
    """
    if torch.is_grad_enabled():
        return _LayerNorm.apply(x, weight, bias, eps, dtype)
    return norm_forward(x, None, weight, bias, eps, dtype)


def merge_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Concatenate 2x2 neighbours and normalize them together.

    The neighbours stand in the order (0, 0), (1, 0), (0, 1), (1, 1) as (row,
    column). Odd sizes are padded with zeros on the right and at the bottom,
    which count in the norm.

    Args:
        x: Feature map (B, H, W, C).
        weight: Scale (4C,).
        bias: Shift (4C,).
        eps: Added to the variance.
        dtype: Dtype of the result.

    Returns:
        Feature map (B, ceil(H / 2), ceil(W / 2), 4C).
    """
    run = _MergeLayerNorm.apply if torch.is_grad_enabled() else _merge_forward
    return run(x, weight, bias, eps, dtype)
