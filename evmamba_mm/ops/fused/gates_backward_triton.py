"""Kernels from the gradient of gates to those of means and parameters.

The backward of :mod:`.pooled_gates_triton` without its maps: one program a
map and batch entry ends the sums over tokens and goes back through both
linear maps, whose weights it holds in registers; then one program sums a few
of the parameters' gradients over all of these.

Shape letters: N maps, B batch, C channels, E hidden channels, P partial sums
of a batch entry.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations_triton import activate, slope
from .launch import launch
from .norm_triton import load_rows
from .pooled_gates_triton import padded
from .tiles import empty_gradient, row_tile

# Few channels a program: the parameters have little else to share out.
_PARAMETER_COLUMNS = 16


class GateGradients(NamedTuple):
    """What the gradients of maps and of parameters are made of, in fp32.

    Args:
        gates: Gradients of the gates before their sigmoid, (N, B, C).
        hidden: Of the hidden channels before their activation, (N, B, E).
        pooled: Of the means after the affine part of the norm, (N, B, C).
        factors: What a map's channels were multiplied by, (N, B, C).
        levels: Gradient of each normalised token of a map by way of the
            gates, less its mean over the channels, (N, B, C).
    """

    gates: Tensor
    hidden: Tensor
    pooled: Tensor
    factors: Tensor
    levels: Tensor


@triton.jit
def _gates_kernel(
    dgates_ptr,
    dhidden_ptr,
    dpooled_ptr,
    factors_ptr,
    levels_ptr,
    sums_ptr,
    gates_ptr,
    hidden_ptr,
    weight_ptr,
    reduce_ptr,
    expand_ptr,
    scale_ptr,
    batch,
    tokens,
    programs,
    C: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    hidden = tl.arange(0, HIDDEN)
    there = hidden < E
    # Ahead of the sums, so as not to wait for them.
    wide = there[:, None] & inside[None, :]
    reduce = load_rows(reduce_ptr, hidden, C, columns, wide)
    tall = inside[:, None] & there[None, :]
    expand = load_rows(expand_ptr, columns, E, hidden, tall)
    entry = tl.program_id(0).to(tl.int64)
    sums_ptr += entry * programs * C
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, programs, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < programs)[:, None] & inside[None, :]
        total += load_rows(sums_ptr, rows, C, columns, mask)
    place = entry * C + columns
    open_ = tl.sigmoid(tl.load(gates_ptr + place, inside, other=0.0))
    factor = open_
    if scale_ptr is not None:
        factor *= tl.load(scale_ptr + entry % batch).to(tl.float32)
    tl.store(factors_ptr + place, factor, mask=inside)
    dgates = tl.sum(total, axis=0) * factor * (1 - open_)
    tl.store(dgates_ptr + place, dgates, mask=inside)
    x = tl.load(hidden_ptr + entry * E + hidden, there, other=0.0)
    dhidden = tl.sum(expand * dgates[:, None], axis=0) * slope(x, 'gelu')
    tl.store(dhidden_ptr + entry * E + hidden, dhidden, mask=there)
    dpooled = tl.sum(reduce * dhidden[:, None], axis=0)
    tl.store(dpooled_ptr + place, dpooled, mask=inside)
    # All tokens of a map have the same gradient by way of the gates.
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    dnormed = dpooled * weight / tokens
    level = dnormed - tl.sum(dnormed, axis=0) / C
    tl.store(levels_ptr + place, level, mask=inside)


@triton.jit
def _norm_gradients(
    dweight_ptr,
    dbias_ptr,
    dexpand_bias_ptr,
    dgates_ptr,
    dpooled_ptr,
    mean_ptr,
    entries,
    columns,
    inside,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What has one value a channel."""
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    dexpand_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, entries, ROWS):
        rows = first + tl.arange(0, ROWS).to(tl.int64)
        mask = (rows < entries)[:, None] & inside[None, :]
        dpooled = load_rows(dpooled_ptr, rows, C, columns, mask)
        dweight += dpooled * load_rows(mean_ptr, rows, C, columns, mask)
        dbias += dpooled
        dexpand_bias += load_rows(dgates_ptr, rows, C, columns, mask)
    tl.store(dweight_ptr + columns, tl.sum(dweight, axis=0), mask=inside)
    tl.store(dbias_ptr + columns, tl.sum(dbias, axis=0), mask=inside)
    places = dexpand_bias_ptr + columns
    tl.store(places, tl.sum(dexpand_bias, axis=0), mask=inside)


@triton.jit
def _parameters_kernel(
    dweight_ptr,
    dbias_ptr,
    dreduce_ptr,
    dreduce_bias_ptr,
    dexpand_ptr,
    dexpand_bias_ptr,
    dgates_ptr,
    dhidden_ptr,
    dpooled_ptr,
    mean_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    entries,
    C: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < C
    channel = tl.program_id(1)
    if channel == E:
        _norm_gradients(
            dweight_ptr, dbias_ptr, dexpand_bias_ptr, dgates_ptr, dpooled_ptr,
            mean_ptr, entries, columns, inside, C, ROWS, COLUMNS,
        )  # fmt: skip
    else:
        weight = tl.load(weight_ptr + columns, inside, other=0.0)
        bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
        weight = weight.to(tl.float32)
        dreduce = tl.zeros((ROWS, COLUMNS), tl.float32)
        dexpand = tl.zeros((ROWS, COLUMNS), tl.float32)
        dreduce_bias = tl.zeros((ROWS,), tl.float32)
        for first in range(0, entries, ROWS):
            rows = first + tl.arange(0, ROWS).to(tl.int64)
            mask = (rows < entries)[:, None] & inside[None, :]
            place = rows * E + channel
            x = tl.load(hidden_ptr + place, rows < entries, other=0.0)
            x = activate(x, 'gelu')
            dgates = load_rows(dgates_ptr, rows, C, columns, mask)
            dexpand += dgates * x[:, None]
            dhidden = tl.load(dhidden_ptr + place, rows < entries, other=0.0)
            mean = load_rows(mean_ptr, rows, C, columns, mask)
            pooled = mean * weight[None, :] + bias[None, :]
            dreduce += pooled * dhidden[:, None]
            dreduce_bias += dhidden
        places = dreduce_ptr + channel * C + columns
        tl.store(places, tl.sum(dreduce, axis=0), mask=inside)
        places = dexpand_ptr + columns * E + channel
        tl.store(places, tl.sum(dexpand, axis=0), mask=inside)
        place, total = dreduce_bias_ptr + channel, tl.sum(dreduce_bias, axis=0)
        tl.store(place, total, mask=tl.program_id(0) == 0)


def gates_backward(
    sums: Tensor,
    tokens: int,
    gates: Tensor,
    hidden: Tensor,
    weight: Tensor,
    reduce_weight: Tensor,
    expand_weight: Tensor,
    scale: Tensor | None,
) -> GateGradients:
    """Launch the way from the gated and scaled maps back to their means.

    Args:
        sums: Partial sums over tokens of each map times the gradient of the
            sum of the gated maps, (N, B, P, C) in fp32, B of at least 1.
        tokens: Tokens of a map.
        gates: Gates before their sigmoid, (N, B, C) in fp32.
        hidden: Hidden channels before GELU, (N, B, E) in fp32.
        weight: Scale of the norm, (C,).
        reduce_weight: (E, C).
        expand_weight: (C, E).
        scale: Factor of each batch entry, (B,), or None.
    """
    maps, batch, programs, channels = sums.shape
    made = GateGradients(
        torch.empty_like(gates),
        torch.empty_like(hidden),
        *(torch.empty_like(gates) for _ in range(3)),
    )
    tile = row_tile(channels)
    hidden_tile = padded(hidden.shape[2])
    weights = (x.contiguous() for x in (weight, reduce_weight, expand_weight))
    scale = None if scale is None else scale.contiguous()
    launch(
        _gates_kernel,
        (maps * batch, 1, 1),
        (*made, sums, gates, hidden, *weights, scale),
        (batch, tokens, programs),
        (channels, hidden.shape[2], tile.rows, tile.columns, hidden_tile),
        max(tile.warps, hidden_tile * tile.columns // 1024),
    )
    return made


def parameters_backward(
    made: GateGradients,
    mean: Tensor,
    hidden: Tensor,
    parameters: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Launch the sums over maps and batch entries.

    Args:
        made: What :func:`gates_backward` gave.
        mean: Means of the normalised tokens, (N, B, C) in fp32.
        hidden: Hidden channels before GELU, (N, B, E) in fp32.
        parameters: Scale and shift of the norm, (C,), then weight and bias of
            both linear maps, (E, C), (E,), (C, E) and (C,).

    Returns:
        Gradient of each parameter, in its shape and dtype.
    """
    maps, batch, channels = mean.shape
    count = hidden.shape[2]
    gradients = tuple(empty_gradient(x, x) for x in parameters)
    weight, bias, *_ = parameters
    tile = row_tile(min(channels, _PARAMETER_COLUMNS))
    launch(
        _parameters_kernel,
        (-(-channels // tile.columns), count + 1, 1),
        (
            *gradients,
            *made[:3],
            mean,
            hidden,
            weight.contiguous(),
            bias.contiguous(),
        ),
        (maps * batch,),
        (channels, count, tile.rows, tile.columns),
        tile.warps,
    )
    return gradients
