"""FLOPs of the package's operators, for mmengine's counter.

The toolboxes' ``get_flops.py`` and ``get_model_complexity_info`` count the
operators in mmengine's table and ignore all others.
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


def _map_flops(inputs: list, readings: int) -> int:
    """Count the projections and the scan of (x, x_proj, dt_projs, ...).

    Args:
        inputs: Arguments of an operation that scans a map.
        readings: Sequences that contain a position.
    """
    batch, height, width, channels = get_shape(inputs[0])
    columns, rank = get_shape(inputs[1])[1], get_shape(inputs[2])[2]
    states = get_shape(inputs[4])[1]
    cells = readings * batch * height * width
    projections = cells * channels * (columns + rank)
    return projections + selective_scan_flops(1, cells, channels, states)


def _es2d_handle(inputs: list, outputs: list) -> int:
    """Count a scan by groups, which reads each position once."""
    return _map_flops(inputs, readings=1)


def _ss2d_handle(inputs: list, outputs: list) -> int:
    """Count a scan that reads each position once per direction."""
    # Each direction has its own parameter set.
    return _map_flops(inputs, readings=get_shape(inputs[1])[0])


def _ss2d_cuda_handle(inputs: list, outputs: list) -> int:
    """Count what is left of SS2D after its projection by a linear layer."""
    batch, height, width, channels = get_shape(inputs[0])
    directions, _, rank = get_shape(inputs[2])
    cells = directions * batch * height * width
    flops = selective_scan_flops(1, cells, channels, get_shape(inputs[4])[1])
    return cells * channels * rank + flops


def register_flop_handles() -> None:
    """Add the scan's operations to mmengine's table."""
    table = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    for name in ('', '_mamba', '_numba'):
        table[f'evmamba_mm::selective_scan{name}'] = _scan_handle
    table['evmamba_mm::es2d_scan_numba'] = _es2d_handle
    table['evmamba_mm::ss2d_scan_numba'] = _ss2d_handle
    table['evmamba_mm::es2d_scan_cuda'] = _es2d_handle
    table['evmamba_mm::ss2d_scan_cuda'] = _ss2d_cuda_handle
