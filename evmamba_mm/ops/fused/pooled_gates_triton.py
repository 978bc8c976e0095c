"""Kernel from the sums of maps' tokens to the gates of their channels.

One program a batch entry: it ends the sums, does the affine part of the norm
and both linear maps, whose weights it holds in registers.

Shape letters: N maps, B batch, H W map, C channels, E hidden channels, P
partial sums of a batch entry.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations_triton import activate
from .launch import launch
from .norm_triton import load_rows
from .pooled_norm_triton import sum_maps
from .tiles import row_tile


@triton.jit
def _gates_kernel(
    out_ptr,
    mean_ptr,
    hidden_ptr,
    sums_ptr,
    scale_ptr,
    shift_ptr,
    reduce_ptr,
    reduce_bias_ptr,
    expand_ptr,
    expand_bias_ptr,
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
    scale = tl.load(scale_ptr + columns, inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + columns, inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / tokens
    if mean_ptr is not None:
        tl.store(mean_ptr + entry * C + columns, mean, mask=inside)
    x = mean * scale + shift
    bias = tl.load(reduce_bias_ptr + hidden, there, other=0.0).to(tl.float32)
    x = tl.sum(reduce * x[None, :], axis=1) + bias
    if hidden_ptr is not None:
        tl.store(hidden_ptr + entry * E + hidden, x, mask=there)
    x = activate(x, 'gelu')
    bias = tl.load(expand_bias_ptr + columns, inside, other=0.0).to(tl.float32)
    x = tl.sum(expand * x[None, :], axis=1) + bias
    tl.store(out_ptr + entry * C + columns, x, mask=inside)


def padded(size: int) -> int:
    """Size of a tensor in registers."""
    return 1 << (size - 1).bit_length()


def forward(
    first: Tensor,
    second: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Launch for one or two maps; see :func:`.pooled_gates.pooled_gates`.

    Returns:
        Gates of each map, (N, B, C), and where ``keep`` asks for what a
        backward needs, the means of the normalised tokens, (N, B, C), and the
        hidden channels before their activation, (N, B, E). All in fp32.
    """
    batch, height, width, channels = first.shape
    maps, hidden = 1 if second is None else 2, reduce_weight.shape[0]
    out = torch.empty(
        (maps, batch, channels), dtype=torch.float32, device=first.device
    )
    mean = torch.empty_like(out) if keep else None
    inner = out.new_empty((maps, batch, hidden)) if keep else None
    if batch == 0:
        return out, mean, inner
    sums = sum_maps(first, second, eps)
    tile = row_tile(channels)
    hidden_tile = padded(hidden)
    warps = max(tile.warps, hidden_tile * tile.columns // 1024)
    parameters = (
        scale, shift, reduce_weight, reduce_bias, expand_weight, expand_bias
    )  # fmt: skip
    launch(
        _gates_kernel,
        (maps * batch, 1, 1),
        (out, mean, inner, sums, *(x.contiguous() for x in parameters)),
        (height * width, sums.shape[2]),
        (channels, hidden, tile.rows, tile.columns, hidden_tile),
        warps,
    )
    return out, mean, inner
