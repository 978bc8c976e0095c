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


def register_flop_handles() -> None:
    """Add the scan's operations to mmengine's table."""
    table = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    for name in ('selective_scan', 'selective_scan_mamba'):
        table[f'evmamba_mm::{name}'] = _scan_handle
