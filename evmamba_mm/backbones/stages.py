"""The blocks of a stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..layers import ES2D, SS2D, EVSSBlock, InvertedResidual
from .options import activation, per_stage


@dataclass(frozen=True)
class StageOptions:
    """Options of the blocks of one stage.

    See :class:`evmamba_mm.EfficientVMamba` for what each means; ``mixer_act``,
    ``act`` and ``inverted_act`` make the activations.
    """

    channels: int
    step_size: int
    d_state: int
    expand_ratio: int
    dt_rank: int | None
    se_ratio: float
    inverted_expand_ratio: int
    inverted_se_ratio: float
    mixer_act: Callable[[], nn.Module]
    act: Callable[[], nn.Module]
    inverted_act: Callable[[], nn.Module]
    scan_backend: str


def stage_options(
    channels: Sequence[int],
    by_stage: Mapping[str, Any],
    mixer_act_cfg: Mapping,
    act_cfg: Mapping,
    inverted_act_cfg: Mapping,
    scan_backend: str,
) -> list[StageOptions]:
    """Options of each stage, as of :class:`evmamba_mm.EfficientVMamba`.

    Those ``by_stage`` have one value, or a list with one per stage.

    Raises:
        ValueError: If one is not legal.
    """
    values = {
        name: per_stage(name, value, len(channels))
        for name, value in by_stage.items()
    }
    shared = dict(
        mixer_act=activation('mixer_act_cfg', mixer_act_cfg),
        act=activation('act_cfg', act_cfg),
        inverted_act=activation('inverted_act_cfg', inverted_act_cfg),
        scan_backend=scan_backend,
    )
    return [
        StageOptions(width, **dict(zip(values, each, strict=True)), **shared)
        for width, *each in zip(channels, *values.values(), strict=True)
    ]


def _es2d(options: StageOptions) -> ES2D:
    return ES2D(
        options.channels,
        options.step_size,
        options.d_state,
        options.expand_ratio,
        options.dt_rank,
        options.scan_backend,
        options.mixer_act,
    )


def _ss2d(options: StageOptions) -> SS2D:
    return SS2D(
        options.channels,
        options.d_state,
        options.expand_ratio,
        options.dt_rank,
        options.scan_backend,
        options.mixer_act,
    )


def _evss_block(options: StageOptions, drop_path_rate: float) -> nn.Module:
    return EVSSBlock(
        options.channels,
        _es2d(options),
        drop_path_rate=drop_path_rate,
        se_ratio=options.se_ratio,
        act=options.act,
    )


def _es2d_block(options: StageOptions, drop_path_rate: float) -> nn.Module:
    return EVSSBlock(options.channels, _es2d(options), False, drop_path_rate)


def _ss2d_block(options: StageOptions, drop_path_rate: float) -> nn.Module:
    return EVSSBlock(options.channels, _ss2d(options), False, drop_path_rate)


def _inverted_residual(
    options: StageOptions, drop_path_rate: float
) -> nn.Module:
    return InvertedResidual(
        options.channels,
        options.inverted_expand_ratio,
        options.inverted_se_ratio,
        drop_path_rate,
        options.inverted_act,
    )


# Another module may add its own: a name for `block_types`.
BLOCKS: dict[str, Callable[[StageOptions, float], nn.Module]] = {
    'evss': _evss_block,
    'es2d': _es2d_block,
    'ss2d': _ss2d_block,
    'inverted_residual': _inverted_residual,
}
