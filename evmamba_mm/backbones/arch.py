"""The published variants, and checks of custom ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..arguments import MAX_CHANNELS, MAX_DEPTH, is_integer


@dataclass(frozen=True)
class Arch:
    """Widths and depths of the stages.

    Args:
        channels: Channels of each stage.
        depths: Blocks of each stage.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]


# 'small' is what the released weights hold; the paper's Table 1 prints the
# widths of 'base' for it. 'atto' is a test size, nothing was published for it.
ARCHS = {
    'atto': Arch((16, 32, 64, 128), (2, 1, 2, 1)),
    'tiny': Arch((48, 96, 192, 384), (2, 2, 4, 2)),
    'small': Arch((64, 128, 256, 512), (2, 2, 4, 2)),
    'base': Arch((96, 192, 384, 768), (2, 2, 9, 2)),
}


def _positive_integers(
    name: str, values: object, most: int
) -> tuple[int, ...]:
    legal = (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) > 0
        and all(is_integer(v) and 0 < v <= most for v in values)
    )
    if not legal:
        raise ValueError(
            f'arch[{name!r}] must be a list of positive integers of at most '
            f'{most}, one a stage, got {values!r}'
        )
    return tuple(values)


def resolve_arch(
    arch: str | Mapping, archs: Mapping[str, Arch] = ARCHS
) -> Arch:
    """Widths and depths of a named or a custom variant.

    Args:
        arch: A name or a mapping with the keys ``channels`` and ``depths``,
            lists of one length.
        archs: The variants that have names.

    Raises:
        ValueError: If the name is unknown or the mapping malformed.
    """
    if isinstance(arch, str):
        if arch not in archs:
            raise ValueError(
                f'arch must be one of {", ".join(archs)} or a dict with '
                f'channels and depths, got {arch!r}'
            )
        return archs[arch]
    if not isinstance(arch, Mapping) or set(arch) != {'channels', 'depths'}:
        raise ValueError(
            'a custom arch must be a dict with exactly the keys channels and '
            f'depths, got {arch!r}'
        )
    channels = _positive_integers('channels', arch['channels'], MAX_CHANNELS)
    depths = _positive_integers('depths', arch['depths'], MAX_DEPTH)
    if len(channels) != len(depths):
        raise ValueError(
            'arch must have as many channels as depths, got '
            f'{list(channels)} and {list(depths)}'
        )
    return Arch(channels, depths)


def resolve_out_indices(
    out_indices: int | Sequence[int], stages: int
) -> tuple[int, ...]:
    """Output stages as increasing indices from 0.

    Args:
        out_indices: One stage or several; negative ones count from the end.
        stages: Number of stages.

    Raises:
        ValueError: If an index is out of range, repeated, or out of order.
    """
    several = isinstance(out_indices, Sequence)
    given = tuple(out_indices) if several else (out_indices,)
    legal = all(is_integer(i) and -stages <= i < stages for i in given)
    indices = tuple(i % stages for i in given) if legal else ()
    if not indices or list(indices) != sorted(set(indices)):
        raise ValueError(
            f'out_indices must be increasing stages from 0 to {stages - 1} '
            f'(or -{stages} to -1), got {out_indices!r}'
        )
    return indices


def resolve_block_types(
    block_types: Sequence[str], legal: Sequence[str], stages: int
) -> tuple[str, ...]:
    """Block type of each stage.

    Raises:
        ValueError: If a type is unknown or there is not one per stage.
    """
    is_name = isinstance(block_types, str)
    is_list = isinstance(block_types, Sequence) and not is_name
    types = tuple(block_types) if is_list else ()
    if len(types) != stages or any(t not in legal for t in types):
        raise ValueError(
            f'block_types must name {stages} stages, each one of '
            f'{", ".join(legal)}, got {block_types!r}'
        )
    return types
