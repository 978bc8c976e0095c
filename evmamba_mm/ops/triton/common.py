"""Shared by all kernel families: device limits, tiles, layouts, launches.

Everything depends on shapes only, so a result is the same on every GPU and in
every run.

Shape letters: B batch, H W feature map, C channels, M rows of tokens.
"""

import functools
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import function
from triton.compiler import CompiledKernel


class DeviceLimits(NamedTuple):
    """Limits that tiles are chosen for.

    Args:
        multiprocessors: Of a large GPU, which programs should fill.
        partial_sums: Most programs that leave a partial sum each: eight a
            multiprocessor, so that all of them run at one time.
        pipeline_bytes: Shared memory that a pipelined loop may take, so that
            several programs share the 99 KB of a small GPU.
        per_thread: Elements of a tile that a thread holds.
    """

    multiprocessors: int = 132
    partial_sums: int = 1056
    pipeline_bytes: int = 48 * 1024
    per_thread: int = 16


LIMITS = DeviceLimits()
_PIPELINE_STAGES = 3
_VERSION = tuple(int(part) for part in triton.__version__.split('.')[:2])
# A compiled kernel is called with all arguments, constexprs too: the form of
# Triton's tutorial on the fused softmax since 3.6.
_COMPILED_ARE_CALLED = (3, 6) <= _VERSION <= (3, 8)
_MOST_COMPILED = 4096
_compiled: dict[tuple, CompiledKernel] = {}

_logger = logging.getLogger('evmamba_mm')


class Tile(NamedTuple):
    """Extent of one step of a program: all channels of some rows."""

    rows: int
    columns: int
    warps: int


@functools.lru_cache(maxsize=1024)
def row_tile(channels: int, elements: int = 2048) -> Tile:
    """Tile of about this many elements, powers of two both ways.

    Args:
        channels: Length of a row.
        elements: Size wanted; it is more if one row is longer.
    """
    columns = max(16, 1 << (channels - 1).bit_length())
    rows = max(1, elements // columns)
    warps = rows * columns // (32 * LIMITS.per_thread)
    return Tile(rows, columns, min(max(warps, 1), 16))


@functools.lru_cache(maxsize=1024)
def split_rows(
    count: int,
    tile_rows: int,
    at_least: int,
    groups: int = 1,
    waves: int = 4,
    programs: int | None = None,
) -> tuple[int, int]:
    """Share out the rows of each group among programs.

    Args:
        count: Rows of a group.
        tile_rows: Rows of a step.
        at_least: Rows that a program should have, a power of two; fewer are
            given where the card would stay empty.
        groups: Number of groups, whose rows never share a program.
        waves: Programs for each multiprocessor below which the card counts
            as empty.
        programs: Most programs of a group; a program then has more rows.

    Returns:
        Programs of a group, and steps of a program.
    """
    rows = max(at_least, tile_rows)
    if programs is not None:
        rows = max(rows, -(-count // programs))
    wanted = waves * LIMITS.multiprocessors
    while rows > tile_rows and groups * -(-count // rows) < wanted:
        rows //= 2
    steps = -(-rows // tile_rows)
    return -(-count // (steps * tile_rows)), steps


def pipeline_stages(elements: int, *maps: Tensor | None) -> int:
    """Stages of a loop over tiles whose loads run ahead of it.

    Only loops that add up many rows gain by it: those that also write as much
    as they read have enough programs to wait for each other.

    Args:
        elements: Size of a tile.
        maps: The tensors that the loop reads, None for an absent one.

    Returns:
        Stages for ``tl.range``, 1 where tiles would fill the shared memory.
    """
    size = sum(x.element_size() for x in maps if x is not None)
    fits = _PIPELINE_STAGES * elements * size <= LIMITS.pipeline_bytes
    return _PIPELINE_STAGES if fits else 1


def as_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View of this shape with a dense last dimension; a copy if there is none.

    Args:
        x: Tensor of any layout.
        shape: Shape to give it; the last dimension stays.
    """
    x = x.reshape(shape)
    return x if x.stride(-1) == 1 else x.contiguous()


def image_rows(
    x: Tensor, shape: tuple[int, int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """A feature map as images of evenly spaced rows with dense channels.

    Args:
        x: Feature map of any layout.
        shape: Images, rows of an image and channels.

    Returns:
        The map, copied only if its layout is another, and the elements from
        one image and from one row to the next.
    """
    x = as_rows(x, shape)
    return x, x.stride()[:2]


def pixel_rows(x: Tensor) -> tuple[Tensor, int]:
    """A feature map as evenly spaced pixels with dense channels.

    A slice of the channels of a contiguous feature map is used in place; other
    layouts are copied.

    Args:
        x: Feature map (B, H, W, C).

    Returns:
        The map, and the elements from one pixel to the next.
    """
    if not x.is_contiguous():
        image, row, pixel, channel = x.stride()
        _, height, width, _ = x.shape
        if channel == 1 and row == width * pixel and image == height * row:
            return x, pixel
        x = x.contiguous()
    return x, x.shape[3]


def dense_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Dense memory of the shape and on the device of ``x``."""
    return torch.empty_like(
        x, dtype=dtype, memory_format=torch.contiguous_format
    )


@functools.cache
def _tell_of_compiling() -> None:
    _logger.info(
        'loading GPU kernels; what is new on this machine is compiled first, '
        'and kept for later runs'
    )


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | None],
    numbers: tuple[int | float, ...],
    constants: tuple[Hashable, ...],
    warps: int,
    stages: int | None = None,
    contract: bool = True,
) -> None:
    """Launch a kernel on the device of its first tensor.

    Args:
        kernel: Made by ``triton.jit``. Its parameters come in this order:
            pointers, numbers, constexprs.
        grid: Programs along each axis.
        tensors: One for each pointer, None for an absent one; the first is
            present.
        numbers: Arguments at run time.
        constants: Arguments that it is compiled for.
        warps: Warps of a program.
        stages: Stages of its software pipeline, or None for Triton's choice.
        contract: Whether a product and a sum may be rounded once, not twice
            as torch's own operations are.
    """
    device = tensors[0].get_device()
    options = {} if stages is None else {'num_stages': stages}
    if not contract:
        options['enable_fp_fusion'] = False
    arguments = (*tensors, *numbers, *constants)
    if not tensors[0].is_cuda:
        kernel[grid](*arguments, num_warps=warps, **options)
        return
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(
                *(kernel, grid, tensors, numbers, constants),
                *(warps, stages, contract),
            )
        return
    # The JIT looks at every argument in every launch to find how to specialise
    # a kernel, which takes longer than many kernels run. This key tells it.
    layouts = [
        x if x is None else (x.dtype, x.data_ptr() % 16) for x in tensors
    ]
    key = (
        *(kernel.fn, device, numbers, constants, warps, stages, contract),
        *layouts,
    )
    compiled = _compiled.get(key)
    if compiled is not None:
        compiled[grid](*arguments)
        return
    _tell_of_compiling()
    compiled = kernel[grid](*arguments, num_warps=warps, **options)
    if _COMPILED_ARE_CALLED and isinstance(compiled, CompiledKernel):
        if len(_compiled) >= _MOST_COMPILED:
            _compiled.clear()
        _compiled[key] = compiled


# Of torch.autograd.grad, which hands over many gradients as one tensor.
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def once_differentiable(backward: Callable) -> Callable:
    """Mark a backward that launches kernels, which have no derivative.

    Torch's decorator raises only for a second derivative through the incoming
    gradient; through the saved tensors it would be silently incomplete. So a
    backward that autograd records raises at once.

    Args:
        backward: Of an autograd function.
    """
    once = function.once_differentiable(backward)

    @functools.wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():
            raise RuntimeError(
                'trying to differentiate twice: the fused kernels have no '
                'second derivative; for create_graph=True give the backbone '
                "fused=False and scan_backend='naive'"
            )
        if any(_is_batched(x) for x in gradients if isinstance(x, Tensor)):
            raise RuntimeError(
                'the fused kernels take no batched gradients '
                '(is_grads_batched, vectorize=True); give the backbone '
                'fused=False'
            )
        return once(ctx, *gradients)

    return checked


def is_misread(x: Tensor) -> bool:
    """Whether Triton's interpreter would multiply by the bits of ``x``."""
    return x.dtype == torch.bfloat16 and not x.is_cuda


def _tf32_allowed() -> bool:
    matmul = torch.backends.cuda.matmul
    # Where the newer setting exists, asking by the older name may raise.
    if hasattr(matmul, 'fp32_precision'):
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32


def dot_precision(x: Tensor, transposed: bool = False) -> str:
    """Precision of ``tl.dot`` for this dtype, as torch's settings say.

    Args:
        x: An operand.
        transposed: Whether an operand is transposed in the kernel: Triton 3.0
            and 3.1 crash on that in TF32, 3.3 does not.
    """
    fast = x.dtype == torch.float32 and _tf32_allowed()
    if transposed and _VERSION < (3, 3):
        fast = False
    return 'tf32' if fast else 'ieee'


@triton.jit
def load_rows(x_ptr, rows, stride, columns, mask):
    """Tile (BLOCK_M, BLOCK_C) in fp32 with zeros outside of the mask."""
    places = x_ptr + rows[:, None] * stride + columns[None, :]
    return tl.load(places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(x_ptr, rows, stride, columns, mask, values):
    """Write a tile (BLOCK_M, BLOCK_C) in the dtype of its place."""
    places = x_ptr + rows[:, None] * stride + columns[None, :]
    tl.store(places, values.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_channels(x_ptr, columns, C: tl.constexpr):
    """One value a channel (BLOCK_C,), in fp32 with zeros outside."""
    return tl.load(x_ptr + columns, columns < C, other=0.0).to(tl.float32)


@triton.jit
def normalize(x, inside, eps, C: tl.constexpr):
    """``xhat = (x - mean) * rstd`` of each row, zero outside, and rstd."""
    mean = tl.sum(x, axis=1) / C
    centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def normalize_backward(dxhat, xhat, rstd, C: tl.constexpr):
    """``dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))``."""
    along = tl.sum(dxhat * xhat, axis=1) / C
    mean = tl.sum(dxhat, axis=1) / C
    dx = dxhat - mean[:, None] - xhat * along[:, None]
    return dx * rstd[:, None]


# The fast forms below take a third of the instructions of a division and of
# an exp that keep denormal numbers, which no activation needs.
@triton.jit
def _fast_inverse(x):
    """``1 / x`` for x >= 1, to 3e-7."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def fast_sigmoid(x):
    """``1 / (1 + exp(-x))`` of a tile in fp32, to 4e-7 of itself."""
    return _fast_inverse(1.0 + tl.exp2(-1.4426950408889634 * x))


@triton.jit
def _normal(x):
    """Density of the standard normal distribution, and its integral to x.

    Abramowitz and Stegun, 26.2.17: off by 4e-7 at most, a few units in the
    last place of a value near 1. The formula needs the density anyway, so the
    derivative takes little more than the activation, and both a third of the
    library's erf.
    """
    density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)
    t = _fast_inverse(1.0 + 0.2316419 * tl.abs(x))
    tail = 0.31938153 + t * (
        -0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))
    )
    tail *= density * t
    return density, tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """'none', 'relu', 'gelu' or 'silu' of a tile in fp32."""
    if ACTIVATION == 'relu':
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == 'gelu':
        _, integral = _normal(x)
        x = x * integral
    elif ACTIVATION == 'silu':
        x = x * fast_sigmoid(x)
    return x


@triton.jit
def activation_grad(x, ACTIVATION: tl.constexpr):
    """Derivative at x of an activation but 'none'."""
    if ACTIVATION == 'relu':
        grad = tl.where(x <= 0.0, 0.0, 1.0)
    elif ACTIVATION == 'gelu':
        density, integral = _normal(x)
        grad = integral + x * density
    else:
        gate = fast_sigmoid(x)
        grad = gate * (1.0 + x * (1.0 - gate))
    return grad
