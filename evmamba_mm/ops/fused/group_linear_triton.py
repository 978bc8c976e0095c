"""Linear map of each pixel by the weight of its group, in Triton.

A program takes a window of the pixels of one group, ``step_size`` apart in
the map, so that one matrix serves them all and their addresses follow from
one division for the whole window.

Shape letters: B batch, H W map, D channels, P outputs, G = step_size**2
groups, K parameter sets.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .pixels import pixel_rows
from .sums_triton import add_up
from .tiles import dense_like

# Programs of the backward: each holds a sum of the weight's gradient, so no
# more than run at a time, six on each of the 132 processors of a large GPU.
_PROGRAMS = 792
_SIZES = ['height', 'width', 'blocks', 'slots']
_VERSION = tuple(int(part) for part in triton.__version__.split('.')[:2])
# Triton 3.0 and 3.1 crash on a transposed operand in TF32, 3.3 does not.
_TF32_TRANSPOSES = _VERSION >= (3, 3)


@triton.jit
def _locate(
    block, group, height, width, STEP: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """First pixel of a window, its pixels from there, and which exist."""
    row_windows = tl.cdiv(tl.cdiv(height, STEP), ROWS)
    col_windows = tl.cdiv(tl.cdiv(width, STEP), COLS)
    image = block // (row_windows * col_windows)
    rest = block % (row_windows * col_windows)
    top = rest // col_windows * ROWS * STEP + group % STEP
    left = rest % col_windows * COLS * STEP + group // STEP
    cell = tl.arange(0, ROWS * COLS)[:, None]
    row, col = cell // COLS * STEP, cell % COLS * STEP
    live = (row < height - top) & (col < width - left)
    first = (image.to(tl.int64) * height + top) * width + left
    return first, row * width + col, live


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    u_ptr, w_ptr, y_ptr, height, width, channels, outputs, stride,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) % (STEP * STEP)
    block = tl.program_id(0) // (STEP * STEP)
    which = group % STEP % 2 + group // STEP % 2 * 2
    first, pixel, live = _locate(block, group, height, width, STEP, ROWS, COLS)
    d = tl.arange(0, BLOCK_D)
    p = tl.arange(0, BLOCK_P)
    u = u_ptr + first * stride + (pixel * stride + d[None, :])
    w = w_ptr + (which * outputs + p[None, :]) * channels + d[:, None]
    in_p = p[None, :] < outputs
    y = tl.zeros([ROWS * COLS, BLOCK_P], tl.float32)
    for start in range(0, channels, BLOCK_D):
        left = channels - start
        a = tl.load(u, mask=live & (d[None, :] < left), other=0.0)
        b = tl.load(w, mask=in_p & (d[:, None] < left), other=0.0)
        y = tl.dot(a, b.to(a.dtype), y, input_precision=PRECISION)
        u += BLOCK_D
        w += BLOCK_D
    y_ptr += first * outputs
    tl.store(y_ptr + (pixel * outputs + p[None, :]), y, mask=live & in_p)


@triton.jit(do_not_specialize=_SIZES)
def _backward_kernel(
    dy_ptr, u_ptr, w_ptr, init_ptr, du_ptr, sums_ptr,
    height, width, blocks, slots, channels, outputs,
    stride, dy_stride, init_stride,
    STEP: tl.constexpr, HAS_INIT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    group = pid // chunks % (STEP * STEP)
    slot = pid // chunks // (STEP * STEP)
    which = group % STEP % 2 + group // STEP % 2 * 2
    d = pid % chunks * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    p = tl.arange(0, BLOCK_P)
    in_d = d < channels
    in_w = (p[:, None] < outputs) & in_d
    w = w_ptr + (which * outputs + p[:, None]) * channels + d
    w = tl.load(w, mask=in_w, other=0.0).to(u_ptr.dtype.element_ty)
    dw = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for block in range(slot, blocks, slots):
        first, pixel, live = _locate(
            block, group, height, width, STEP, ROWS, COLS
        )
        dy = dy_ptr + first * dy_stride + (pixel * dy_stride + p[None, :])
        dy = tl.load(dy, mask=live & (p[None, :] < outputs), other=0.0)
        dy = dy.to(u_ptr.dtype.element_ty)
        mask = live & in_d
        u = u_ptr + first * stride + (pixel * stride + d)
        u = tl.load(u, mask=mask, other=0.0)
        du = tl.dot(dy, w, input_precision=PRECISION)
        if HAS_INIT:
            init = init_ptr + first * init_stride + (pixel * init_stride + d)
            du += tl.load(init, mask=mask, other=0.0).to(tl.float32)
        out = du_ptr + first * channels + (pixel * channels + d)
        tl.store(out, du, mask=mask)
        dw = tl.dot(tl.trans(dy), u, dw, input_precision=PRECISION)
    sums = sums_ptr + (group * slots + slot) * outputs * channels
    tl.store(sums + p[:, None] * channels + d, dw, mask=in_w)


def _tf32_allowed() -> bool:
    matmul = torch.backends.cuda.matmul
    # Where the newer setting exists, asking by the older name may raise.
    if hasattr(matmul, 'fp32_precision'):
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32


def dot_precision(x: Tensor) -> str:
    """How ``tl.dot`` multiplies this dtype, as torch is told to."""
    fast = x.dtype == torch.float32 and _tf32_allowed()
    return 'tf32' if fast else 'ieee'


def _padded(size: int, most: int) -> int:
    return min(max(1 << (size - 1).bit_length(), 16), most)


@functools.lru_cache(maxsize=1024)
def _window(
    batch: int, height: int, width: int, step_size: int, pixels: int
) -> tuple[int, int, int]:
    """Rows and columns of a window of that many pixels; windows of a group."""
    rows = triton.cdiv(height, step_size)
    cols = triton.cdiv(width, step_size)

    def windows(window_cols: int) -> int:
        window_rows = pixels // window_cols
        return triton.cdiv(rows, window_rows) * triton.cdiv(cols, window_cols)

    # Of those that fit as well, the widest: its pixels lie closest. With more
    # rows, an int32 might not count the elements that a window spans.
    best = min((pixels >> i for i in range(5)), key=windows)
    return pixels // best, best, batch * windows(best)


def _map_size(x: Tensor, step_size: int) -> tuple[int, int, int]:
    """B, H and W; one long row where all pixels are one group."""
    batch, height, width = x.shape[:3]
    if step_size == 1:
        return 1, 1, batch * height * width
    return batch, height, width


def is_misread(x: Tensor) -> bool:
    """Whether Triton's interpreter would multiply by the bits of ``x``."""
    return x.dtype == torch.bfloat16 and not x.is_cuda


def group_linear_forward(u: Tensor, weight: Tensor, step_size: int) -> Tensor:
    """Result (B, H, W, P) in u's dtype."""
    _, outputs, channels = weight.shape
    y = u.new_empty(*u.shape[:3], outputs)
    if y.numel() == 0 or channels == 0:
        return y.zero_()
    if is_misread(u):
        weight = weight.to(u.dtype).float()
        return group_linear_forward(u.float(), weight, step_size).to(u.dtype)
    weight = weight.contiguous()
    u, stride = pixel_rows(u)
    batch, height, width = _map_size(u, step_size)
    half = u.dtype != torch.float32
    block_p = _padded(outputs, 256)
    pixels = 128 if half and block_p <= 64 else 64 if block_p <= 128 else 32
    rows, cols, windows = _window(batch, height, width, step_size, pixels)
    block_d = _padded(channels, 32 if half else 16)
    launch(
        _forward_kernel,
        (windows * step_size**2, 1, 1),
        (u, weight, y),
        (height, width, channels, outputs, stride),
        (step_size, dot_precision(u), rows, cols, block_p, block_d),
        warps=4 if half else 8,
        stages=4 if half else 3,
    )
    return y


def _sum_of_sets(sums: Tensor, step_size: int) -> Tensor:
    """Sums (G, slots, P, D) to (K, P, D)."""
    by_group = add_up(sums, 1)
    if step_size <= 2:
        return by_group
    by_offset = by_group.unflatten(0, (step_size, step_size))
    parts = [by_offset[j::2, i::2].sum((0, 1)) for j in (0, 1) for i in (0, 1)]
    return torch.stack(parts)


def _backward_tile(u: Tensor, outputs: int) -> tuple[int, int, int]:
    """BLOCK_P, BLOCK_D and pixels, so that two products fit into registers."""
    half = u.dtype != torch.float32
    most = 64 if half else 32
    block_p = _padded(outputs, 256)
    block_d = _padded(u.shape[3], most >> (block_p > 128))
    if block_p > 64:
        return block_p, block_d, most // 2
    return block_p, block_d, most << half


def group_linear_gradients(
    dproj: Tensor,
    u: Tensor,
    weight: Tensor,
    step_size: int,
    du_init: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of u, with ``du_init`` added, and of the weight."""
    _, outputs, channels = weight.shape
    du = dense_like(u, u.dtype)
    if u.numel() == 0 or outputs == 0:
        du = du.zero_() if du_init is None else du.copy_(du_init)
        return du, torch.zeros_like(weight)
    if is_misread(u):
        wide = weight.to(u.dtype).float()
        du, dweight = group_linear_gradients(
            dproj.float(), u.float(), wide, step_size, du_init
        )
        return du.to(u.dtype), dweight.to(weight.dtype)
    weight = weight.contiguous()
    u, stride = pixel_rows(u)
    dproj, dy_stride = pixel_rows(dproj)
    init, init_stride = pixel_rows(u if du_init is None else du_init)
    batch, height, width = _map_size(u, step_size)
    block_p, block_d, pixels = _backward_tile(u, outputs)
    rows, cols, windows = _window(batch, height, width, step_size, pixels)
    programs = -(-channels // block_d) * step_size**2
    slots = min(windows, -(-_PROGRAMS // programs))
    shape = (step_size**2, slots, outputs, channels)
    sums = torch.empty(shape, dtype=torch.float32, device=u.device)
    precision = dot_precision(u) if _TF32_TRANSPOSES else 'ieee'
    launch(
        _backward_kernel,
        (programs * slots, 1, 1),
        (dproj, u, weight, init, du, sums),
        (
            height, width, windows, slots, channels, outputs,
            stride, dy_stride, init_stride,
        ),
        (
            step_size, du_init is not None, precision,
            rows, cols, block_p, block_d,
        ),
        warps=4,
        stages=2,
    )  # fmt: skip
    return du, _sum_of_sets(sums, step_size).to(weight.dtype)
