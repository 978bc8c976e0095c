"""FLOPs of the package's operations, for mmengine's counter.

The hosts' ``get_flops.py`` and ``get_model_complexity_info`` count what is in
mmengine's table; an operation that is not there counts as nothing.
"""

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape


def selective_scan_flops(
    batch: int, length: int, channels: int, states: int, with_d: bool = True
) -> int:
    """FLOPs of one scan, a multiply-add counting as one.

    Args:
        batch: Sequences.
        length: Steps of each.
        channels: Inner channels, all groups together.
        states: States a channel.
        with_d: Whether the input is added to the output.

    Source: the formula of VMamba's and EfficientVMamba's FLOPs columns,
    9 * B * L * D * N + B * L * D.
    """
    flops = 9 * batch * length * channels * states
    return flops + (batch * length * channels if with_d else 0)


def _scan_handle(inputs: list, outputs: list) -> int:
    """Count an operation called as (u, delta, A, B, C, D, ...)."""
    batch, channels, length = get_shape(inputs[0])
    states = get_shape(inputs[2])[1]
    with_d = get_shape(inputs[5]) is not None
    return selective_scan_flops(batch, length, channels, states, with_d)


def _numba_map_handle(inputs: list, outputs: list) -> int:
    """Count the projections and the scan of (x, x_proj, dt_projs, ...)."""
    batch, height, width, channels = get_shape(inputs[0])
    columns, rank = get_shape(inputs[1])[1], get_shape(inputs[2])[2]
    states = get_shape(inputs[4])[1]
    # The scan by groups reads a cell once and has a step size as argument.
    readings = 1 if len(inputs) == 7 else 4
    cells = readings * batch * height * width
    projections = cells * channels * (columns + rank)
    return projections + selective_scan_flops(1, cells, channels, states)


def register_flop_handles() -> None:
    """Add the scan's operations to mmengine's table."""
    table = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    for name in ('', '_mamba', '_numba'):
        table[f'evmamba_mm::selective_scan{name}'] = _scan_handle
    for name in ('es2d_scan_numba', 'ss2d_scan_numba'):
        table[f'evmamba_mm::{name}'] = _numba_map_handle
