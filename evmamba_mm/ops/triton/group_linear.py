"""Linear map of each pixel by the weight of its atrous group.

It makes what the selective scan reads of each pixel: B, C and dt. The
parameter has the rows of dt first, so the kernels reorder by the addresses
that they use, and no reordered copy is ever made.

Shape letters: B batch, H W feature map, D channels, K parameter sets, N
states, R dt rank, W = R + 2N rows of the weight, P columns of a projected
pixel, G = step**2 groups.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    dense_like,
    dot_precision,
    is_misread,
    launch,
    pixel_rows,
)
from .sums import sum_parts

# A wider result would not fit into the registers of a program.
MAX_OUTPUTS = 256
# Programs of the backward: each holds a sum of the weight's gradient, so no
# more than run at a time, six on each of the 132 multiprocessors of a large
# GPU.
_PROGRAMS = 792
_SIZES = ['height', 'width', 'blocks', 'slots', 'rank', 'rows']


def proj_columns(states: int, rank: int) -> int:
    """Columns of a projected pixel: B, C, dt, and padding to whole vectors.

    Args:
        states: N.
        rank: R.
    """
    return -(-(2 * states + rank) // 8) * 8


@triton.jit
def _locate(
    block, group, height, width, STEP: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """First pixel of a window, its pixels from there, and which exist.

    Group ``g = i + STEP * j`` holds the pixels at rows ``i::STEP`` and
    columns ``j::STEP``. One matrix serves a whole window of them, and one
    division finds their addresses.
    """
    windows_down = tl.cdiv(tl.cdiv(height, STEP), BLOCK_H)
    windows_across = tl.cdiv(tl.cdiv(width, STEP), BLOCK_W)
    image = block // (windows_down * windows_across)
    rest = block % (windows_down * windows_across)
    top = rest // windows_across * BLOCK_H * STEP + group % STEP
    left = rest % windows_across * BLOCK_W * STEP + group // STEP
    cell = tl.arange(0, BLOCK_H * BLOCK_W)[:, None]
    row, col = cell // BLOCK_W * STEP, cell % BLOCK_W * STEP
    exists = (row < height - top) & (col < width - left)
    first = (image.to(tl.int64) * height + top) * width + left
    return first, row * width + col, exists


@triton.jit
def _weight_rows(p, group, rank, rows, STEP: tl.constexpr):
    """Row of the weight that makes column p, counted over all sets.

    Columns are B, C, dt and rows are dt, B, C, so that column p is row
    ``(p + R) % W`` of set ``i % 2 + 2 * (j % 2)``.
    """
    which = group % STEP % 2 + group // STEP % 2 * 2
    row = p + rank
    return which * rows + tl.where(row < rows, row, row - rows)


# y[pixel, p] = sum_d u[pixel, d] * w[(p + R) % W, d], and 0 for p >= W.
@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    u_ptr, w_ptr, y_ptr,
    height, width, rank, rows, channels, outputs, u_stride,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) % (STEP * STEP)
    block = tl.program_id(0) // (STEP * STEP)
    first, pixel, exists = _locate(
        block, group, height, width, STEP, BLOCK_H, BLOCK_W
    )
    d = tl.arange(0, BLOCK_D)
    p = tl.arange(0, BLOCK_P)
    u = u_ptr + first * u_stride + (pixel * u_stride + d[None, :])
    w_rows = _weight_rows(p, group, rank, rows, STEP)
    w = w_ptr + w_rows[None, :] * channels + d[:, None]
    in_w = p[None, :] < rows
    y = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_P], tl.float32)
    for start in range(0, channels, BLOCK_D):
        left = channels - start
        a = tl.load(u, mask=exists & (d[None, :] < left), other=0.0)
        b = tl.load(w, mask=in_w & (d[:, None] < left), other=0.0)
        y = tl.dot(a, b.to(a.dtype), y, input_precision=PRECISION)
        u += BLOCK_D
        w += BLOCK_D
    y_ptr += first * outputs
    mask = exists & (p[None, :] < outputs)
    tl.store(y_ptr + (pixel * outputs + p[None, :]), y, mask=mask)


# du[pixel] = sum_p dy[pixel, p] * w[(p + R) % W] + du_init[pixel]
# dw[(p + R) % W] = sum_pixel dy[pixel, p] * u[pixel], a sum for each program.
@triton.jit(do_not_specialize=_SIZES)
def _backward_kernel(
    dy_ptr, u_ptr, w_ptr, init_ptr, du_ptr, sums_ptr,
    height, width, blocks, slots, rank, rows, channels, outputs,
    u_stride, dy_stride, init_stride,
    STEP: tl.constexpr, HAS_INIT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(channels, BLOCK_D)
    pid = tl.program_id(0)
    group = pid // chunks % (STEP * STEP)
    slot = pid // chunks // (STEP * STEP)
    d = pid % chunks * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    p = tl.arange(0, BLOCK_P)
    in_d = d < channels
    in_w = (p[:, None] < rows) & in_d
    w_rows = _weight_rows(p, group, rank, rows, STEP)
    w = tl.load(w_ptr + w_rows[:, None] * channels + d, mask=in_w, other=0.0)
    w = w.to(u_ptr.dtype.element_ty)
    dw = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for block in range(slot, blocks, slots):
        first, pixel, exists = _locate(
            block, group, height, width, STEP, BLOCK_H, BLOCK_W
        )
        dy = dy_ptr + first * dy_stride + (pixel * dy_stride + p[None, :])
        dy = tl.load(dy, mask=exists & (p[None, :] < outputs), other=0.0)
        # Whole vectors are loaded, and the padding may be anything.
        dy = tl.where(p[None, :] < rows, dy, 0.0)
        dy = dy.to(u_ptr.dtype.element_ty)
        mask = exists & in_d
        u = u_ptr + first * u_stride + (pixel * u_stride + d)
        u = tl.load(u, mask=mask, other=0.0)
        du = tl.dot(dy, w, input_precision=PRECISION)
        if HAS_INIT:
            init = init_ptr + first * init_stride + (pixel * init_stride + d)
            du += tl.load(init, mask=mask, other=0.0).to(tl.float32)
        out = du_ptr + first * channels + (pixel * channels + d)
        tl.store(out, du, mask=mask)
        dw = tl.dot(tl.trans(dy), u, dw, input_precision=PRECISION)
    # Each group has sums of its own, also where groups share a weight.
    own_row = _weight_rows(p, 0, rank, rows, STEP)
    sums = sums_ptr + (group * slots + slot) * rows * channels
    tl.store(sums + own_row[:, None] * channels + d, dw, mask=in_w)


def _padded(size: int, most: int) -> int:
    return min(max(1 << (size - 1).bit_length(), 16), most)


@functools.lru_cache(maxsize=1024)
def _window(
    batch: int, height: int, width: int, step: int, pixels: int
) -> tuple[int, int, int]:
    """Rows and columns of a window of that many pixels; windows of a group."""
    rows = triton.cdiv(height, step)
    cols = triton.cdiv(width, step)

    def windows(window_cols: int) -> int:
        window_rows = pixels // window_cols
        return triton.cdiv(rows, window_rows) * triton.cdiv(cols, window_cols)

    # Of those that fit as well, the widest: its pixels lie closest. With more
    # rows, an int32 might not count the elements that a window spans.
    best = min((pixels >> i for i in range(5)), key=windows)
    return pixels // best, best, batch * windows(best)


def _map_size(x: Tensor, step: int) -> tuple[int, int, int]:
    """B, H and W; one long row where all pixels are one group."""
    batch, height, width = x.shape[:3]
    if step == 1:
        return 1, 1, batch * height * width
    return batch, height, width


def _outputs(u: Tensor, x_proj_weight: Tensor, rank: int, step: int) -> int:
    """P, if the weight is one for this map."""
    sets, rows, channels = x_proj_weight.shape
    assert sets == min(4, step * step), 'one weight a parameter set'
    assert channels == u.shape[3] and 0 <= rank <= rows, 'weight does not fit'
    outputs = proj_columns(0, rows)
    if outputs > MAX_OUTPUTS:
        raise ValueError(
            f'at most {MAX_OUTPUTS} outputs are served, got {outputs} for '
            f'x_proj_weight of shape {tuple(x_proj_weight.shape)}'
        )
    return outputs


def project_forward(
    u: Tensor, x_proj_weight: Tensor, rank: int, step: int
) -> Tensor:
    """Project each pixel to B, C and dt by the weight of its group.

    The pixel at row h and column w uses the parameter set
    ``h % step % 2 + 2 * (w % step % 2)``.

    Args:
        u: Feature map (B, H, W, D), of any H and W, in fp32, fp16 or bf16;
            channels innermost in memory, another layout is copied.
        x_proj_weight: (K, R + 2N, D) with ``K = min(4, step**2)``, the rows of
            dt first, then those of B and C; in any float dtype, read as u's.
        rank: R.
        step: Distance between two pixels of a group.

    Returns:
        Feature map (B, H, W, P) in u's dtype: B, C, dt, and zeros up to a
        multiple of eight columns.

    Raises:
        ValueError: If P is more than ``MAX_OUTPUTS``.
    """
    outputs = _outputs(u, x_proj_weight, rank, step)
    _, rows, channels = x_proj_weight.shape
    y = u.new_empty(*u.shape[:3], outputs)
    if y.numel() == 0 or channels == 0:
        return y.zero_()
    if is_misread(u):
        weight = x_proj_weight.to(u.dtype).float()
        return project_forward(u.float(), weight, rank, step).to(u.dtype)
    u, u_stride = pixel_rows(u)
    batch, height, width = _map_size(u, step)
    half = u.dtype != torch.float32
    block_p = _padded(outputs, 256)
    pixels = 128 if half and block_p <= 64 else 64 if block_p <= 128 else 32
    block_h, block_w, windows = _window(batch, height, width, step, pixels)
    block_d = _padded(channels, 32 if half else 16)
    launch(
        _forward_kernel,
        (windows * step**2, 1, 1),
        (u, x_proj_weight.contiguous(), y),
        (height, width, rank, rows, channels, outputs, u_stride),
        (step, dot_precision(u), block_h, block_w, block_p, block_d),
        warps=4 if half else 8,
        stages=4 if half else 3,
    )
    return y


def _sum_of_sets(sums: Tensor, step: int) -> Tensor:
    """Sums (G, slots, W, D) to (K, W, D)."""
    by_group = sum_parts(sums, 1)
    if step <= 2:
        return by_group
    by_offset = by_group.unflatten(0, (step, step))
    parts = [by_offset[j::2, i::2].sum((0, 1)) for j in (0, 1) for i in (0, 1)]
    return torch.stack(parts)


def _backward_tile(u: Tensor, outputs: int) -> tuple[int, int, int]:
    """BLOCK_P, BLOCK_D and pixels, so that two products fit into registers."""
    most = 32 if u.dtype == torch.float32 else 64
    block_p = _padded(outputs, 256)
    block_d = _padded(u.shape[3], most >> (block_p > 128))
    return block_p, block_d, most >> (block_p > 64)


def project_backward(
    dproj: Tensor,
    u: Tensor,
    x_proj_weight: Tensor,
    rank: int,
    step: int,
    du_init: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`project_forward`.

    Args:
        dproj: Gradient of the result, (B, H, W, P); the padding columns have
            no influence and may be anything.
        u: As given to the forward.
        x_proj_weight: As given to the forward.
        rank: R.
        step: Distance between two pixels of a group.
        du_init: What the gradient of u is added to, (B, H, W, D).

    Returns:
        Gradients of u and of x_proj_weight, each in its tensor's dtype.

    Raises:
        ValueError: If P is more than ``MAX_OUTPUTS``.
    """
    outputs = _outputs(u, x_proj_weight, rank, step)
    assert dproj.shape == (*u.shape[:3], outputs), 'dproj does not fit'
    assert du_init is None or du_init.shape == u.shape, 'du_init does not fit'
    _, rows, channels = x_proj_weight.shape
    if u.numel() == 0:
        return dense_like(u, u.dtype), torch.zeros_like(x_proj_weight)
    if is_misread(u):
        weight = x_proj_weight.to(u.dtype).float()
        du, dweight = project_backward(
            dproj.float(), u.float(), weight, rank, step, du_init
        )
        return du.to(u.dtype), dweight.to(x_proj_weight.dtype)
    du = dense_like(u, u.dtype)
    u, u_stride = pixel_rows(u)
    dproj, dy_stride = pixel_rows(dproj)
    init, init_stride = pixel_rows(u if du_init is None else du_init)
    batch, height, width = _map_size(u, step)
    block_p, block_d, pixels = _backward_tile(u, outputs)
    block_h, block_w, windows = _window(batch, height, width, step, pixels)
    programs = -(-channels // block_d) * step**2
    slots = min(windows, -(-_PROGRAMS // programs))
    shape = (step**2, slots, rows, channels)
    sums = torch.empty(shape, dtype=torch.float32, device=u.device)
    launch(
        _backward_kernel,
        (programs * slots, 1, 1),
        (dproj, u, x_proj_weight.contiguous(), init, du, sums),
        (
            height, width, windows, slots, rank, rows, channels, outputs,
            u_stride, dy_stride, init_stride,
        ),
        (
            step, du_init is not None, dot_precision(u, transposed=True),
            block_h, block_w, block_p, block_d,
        ),
        warps=4,
        # In half precision a pipeline's registers cost more than its waits.
        stages=2 if u.dtype == torch.float32 else 1,
    )  # fmt: skip
    return du, _sum_of_sets(sums, step).to(x_proj_weight.dtype)
