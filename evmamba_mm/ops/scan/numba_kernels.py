"""The loops of the scan on a CPU, compiled by numba.

Shape letters: B batch, G sequences of a sample, D channels, N states, R dt
rank, L length, M cells of a map, S parameter sets, W channels of a block.

One task is a block of channels of one sequence. A block's width is fixed when
it is compiled, so that its loops become whole vectors.
"""

import functools
import threading

import numba
import numpy as np

LANES = 48
LOG2_E = np.float32(1.4426950408889634)
# Contraction makes fused multiply-adds. Sums are never reordered: adding and
# subtracting _ROUND would cancel.
_FASTMATH = {'contract', 'nsz'}
# Added to a small number, it leaves the nearest integer in the lowest bits.
_ROUND = np.float32(1.5 * 2**23)
# Fit of 2**f over [-0.5, 0.5], relative error below 2e-8.
_E1, _E2, _E3, _E4, _E5, _E6 = (
    np.float32(c)
    for c in (
        0.6931472028575878,
        0.24022647913171138,
        0.05550332467058332,
        0.009618437391578845,
        0.0013398875708756214,
        0.00015353356046761234,
    )
)


def _compile(function, parallel: bool = False):
    """Compile on the first call, and keep the result where that is possible.

    Numba writes beside this file, else into the user's cache folder.
    """
    options = dict(
        nogil=True,
        parallel=parallel,
        fastmath=_FASTMATH,
        error_model='numpy',
    )
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


# Numba's fallback thread pool ends the process when two threads enter it.
_pool = threading.Lock()

_compile_parallel = functools.partial(_compile, parallel=True)


@_compile
def exp2(x):
    """Two to the power of ``x``; 2**-126 at the least, infinite from 128."""
    x = min(max(x, np.float32(-126)), np.float32(128))
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    p = _E6 * f + _E5
    p = p * f + _E4
    p = p * f + _E3
    p = p * f + _E2
    p = p * f + _E1
    p = p * f + np.float32(1)
    # Wrapped once more since numba views nothing but explicit dtypes.
    exponent = np.float32(shifted).view(np.int32) << np.int32(23)
    return np.int32(np.float32(p).view(np.int32) + exponent).view(np.float32)


@_compile
def softplus(x):
    """``log(1 + exp(x))``, with log(1 + z) as 2 * atanh(z / (2 + z))."""
    z = exp2(-abs(x) * LOG2_E)
    s = z / (z + np.float32(2))
    q = s * s
    p = np.float32(2 / 13) * q + np.float32(2 / 11)
    p = p * q + np.float32(2 / 9)
    p = p * q + np.float32(2 / 7)
    p = p * q + np.float32(2 / 5)
    p = p * q + np.float32(2 / 3)
    p = p * q + np.float32(2)
    return max(x, np.float32(0)) + p * s


@_compile
def _begin_step(given, width, projected, dt_weight, soft, delta):
    """Step sizes of a block: ``soft(given + dt_weight * dt)``."""
    for j in range(LANES):
        delta[j] = 0
    for j in range(width):
        delta[j] = given[j]
    for r in range(dt_weight.shape[0]):
        dt = projected[r]
        for j in range(LANES):
            delta[j] += dt_weight[r, j] * dt
    if soft:
        for j in range(LANES):
            delta[j] = softplus(delta[j])


@_compile
def _advance(projected, rank, decay, h, delta, inputs, out):
    """Take the states of a block one step on and add them to the output."""
    states = h.shape[0]
    for n in range(states):
        b, c = projected[rank + n], projected[rank + states + n]
        for j in range(LANES):
            state = h[n, j] * exp2(delta[j] * decay[n, j]) + inputs[j] * b
            h[n, j] = state
            out[j] += state * c


@_compile
def _scan_block(
    task, u, cells, rows, projected, given, dt_weight, decay, D, soft, y
):
    sequences, length = cells.shape
    blocks, rank, states = decay.shape[1], dt_weight.shape[2], decay.shape[2]
    k = task % blocks
    g = task // blocks % sequences
    b = task // blocks // sequences
    low = k * LANES
    width = min(LANES, u.shape[2] - low)
    plane = g % y.shape[1]
    given_b = b % given.shape[0]
    h = np.zeros((states, LANES), np.float32)
    delta = np.zeros(LANES, np.float32)
    inputs = np.zeros(LANES, np.float32)
    out = np.zeros(LANES, np.float32)
    for t in range(length):
        cell = cells[g, t]
        line = projected[g, b, rows[g, t]]
        _begin_step(
            given[given_b, g, t % given.shape[2], low:],
            width,
            line,
            dt_weight[g, k],
            soft,
            delta,
        )
        for j in range(width):
            value = u[b, cell, low + j]
            inputs[j] = delta[j] * value
            out[j] = D[g, k, j] * value
        _advance(line, rank, decay[g, k], h, delta, inputs, out)
        for j in range(width):
            y[b, plane, cell, low + j] = out[j]


@_compile
def scan_serial(
    u, cells, rows, projected, given, dt_weight, decay, D, soft, y
):
    """Run :func:`scan` on the calling thread."""
    for task in range(u.shape[0] * cells.shape[0] * decay.shape[1]):
        _scan_block(
            task,
            u,
            cells,
            rows,
            projected,
            given,
            dt_weight,
            decay,
            D,
            soft,
            y,
        )


# A body of its own: numba's cache knows a function by its name alone, and
# would load one form for the other.
@_compile_parallel
def scan_parallel(
    u, cells, rows, projected, given, dt_weight, decay, D, soft, y
):
    """Run :func:`scan` on numba's threads."""
    for task in numba.prange(u.shape[0] * cells.shape[0] * decay.shape[1]):
        _scan_block(
            task,
            u,
            cells,
            rows,
            projected,
            given,
            dt_weight,
            decay,
            D,
            soft,
            y,
        )


def scan(
    u,
    cells,
    rows,
    projected,
    given,
    dt_weight,
    decay,
    D,
    soft,
    y,
    threads,
):
    """Scan sequences of positions.

    Args:
        u: Inputs, (B, M, D).
        cells: Cell of each step, (G, L).
        rows: Row of ``projected`` of each step, (G, L).
        projected: dt, B and C of each step, (G, B, any, R + 2N).
        given: Part of the step sizes that is given, (1 or B, G, 1 or L, D).
        dt_weight: From dt to the rest of them, (G, D / W, R, W).
        decay: Decay rates times log2(e), (G, D / W, N, W).
        D: Weight of the input in the output, (G, D / W, W).
        soft: Whether step sizes go through softplus.
        y: Output, (B, 1 or G, M, D): one plane for all sequences where no
            cell is in two of them, else one each.
        threads: How many to use at most.
    """
    arguments = (
        *(u, cells, rows, projected, given),
        *(dt_weight, decay, D, soft, y),
    )
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)
    if threads < 2:
        scan_serial(*arguments)
        return
    with _pool:
        numba.set_num_threads(threads)
        scan_parallel(*arguments)
