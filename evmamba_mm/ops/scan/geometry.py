"""Which positions of a feature map a scan reads, in which order and direction.

Every backend receives one of these geometries and checks its arguments by it.

Shape letters: B batch, H W feature map, C channels, p step, G sequences, K
parameter sets, N states, R dt rank, L length of a sequence.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...arguments import (
    check_floats,
    check_size,
    check_step_size,
    check_tensor,
)

# How a path reads a map (B, C, H, W) as (B, C, L), and writes it back.
PATHS = {
    'rows': (
        lambda x: x.flatten(2),
        lambda y, height, width: y.reshape(*y.shape[:2], height, width),
    ),
    'columns': (
        lambda x: x.mT.flatten(2),
        lambda y, height, width: y.reshape(*y.shape[:2], width, height).mT,
    ),
}
DIRECTIONS = (*PATHS, *(f'{path}_reversed' for path in PATHS))
# VMamba's, in the order of its weights; other paths do not change it.
FOUR_DIRECTIONS = ('rows', 'columns', 'rows_reversed', 'columns_reversed')


def _check_sequences(y: Tensor, height: int, width: int) -> None:
    check_tensor('y', y)
    check_size('height', height)
    check_size('width', width)


def _check_map(x: Tensor) -> None:
    check_tensor('x', x)
    if x.dim() != 4 or x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(
            'x must be a feature map (B, H, W, C) with H and W of at least '
            f'1, got shape {tuple(x.shape)}'
        )


class Geometry:
    """Sequences that a scan reads from a map, and their parameter sets."""

    @property
    def sequences(self) -> int:
        """Number of sequences, G."""
        return len(self.parameter_sets)

    @property
    def parameter_sets(self) -> tuple[int, ...]:
        """Index of the parameter set of each sequence."""
        raise NotImplementedError

    @property
    def sets(self) -> int:
        """Number of parameter sets, K."""
        return len(set(self.parameter_sets))

    def scan(self, x: Tensor) -> Tensor:
        """Read a feature map (B, H, W, C) as sequences (B, G, C, L)."""
        raise NotImplementedError

    def merge(self, y: Tensor, height: int, width: int) -> Tensor:
        """Write sequences (B, G, C, L) to contiguous (B, H, W, C)."""
        raise NotImplementedError

    def check(
        self,
        x: Tensor,
        x_proj_weight: Tensor,
        dt_projs_weight: Tensor,
        dt_projs_bias: Tensor,
        A_logs: Tensor,
        Ds: Tensor,
    ) -> None:
        """Refuse arguments of a scan that do not fit this geometry.

        Args:
            x: Map, (B, H, W, C).
            x_proj_weight: (K, R + 2N, C).
            dt_projs_weight: (K, C, R).
            dt_projs_bias: (K, C).
            A_logs: (K*C, N).
            Ds: (K*C,).

        Raises:
            ValueError: It names the argument, its shape and the legal one.
        """
        _check_map(x)
        check_floats('x', x)
        for name, tensor, dims in (
            ('A_logs', A_logs, 2),
            ('dt_projs_weight', dt_projs_weight, 3),
        ):
            check_floats(name, tensor)
            if tensor.dim() != dims:
                raise ValueError(
                    f'{name} must have {dims} dimensions, got shape '
                    f'{tuple(tensor.shape)}'
                )
        sets, channels, states = self.sets, x.shape[3], A_logs.shape[1]
        rank = dt_projs_weight.shape[2]
        rows = rank + 2 * states
        for name, tensor, shape in (
            ('x_proj_weight', x_proj_weight, (sets, rows, channels)),
            ('dt_projs_weight', dt_projs_weight, (sets, channels, rank)),
            ('dt_projs_bias', dt_projs_bias, (sets, channels)),
            ('A_logs', A_logs, (sets * channels, states)),
            ('Ds', Ds, (sets * channels,)),
        ):
            check_floats(name, tensor)
            if tensor.shape != shape:
                raise ValueError(
                    f'{name} must have shape {shape} for x of shape '
                    f'{tuple(x.shape)} and {self}, got {tuple(tensor.shape)}'
                )
            if tensor.device != x.device:
                raise ValueError(
                    f'all tensors must be on one device: x is on {x.device}, '
                    f'{name} on {tensor.device}'
                )


@dataclass(frozen=True)
class AtrousGroups(Geometry):
    """Groups of positions ``step`` apart: ES2D's sequences.

    Group ``g = i + step * j`` holds the positions at rows ``i::step`` and
    columns ``j::step``. A group with an even row offset ``i`` is read row by
    row, one with an odd offset column by column. For step 2 this is the order
    of the released weights: (0, 0) by rows, (1, 0) by columns, (0, 1) by rows,
    (1, 1) by columns.

    The CUDA kernels have the order built in; numba's ask :meth:`scan` for it,
    and write each position where they read it.

    Group g uses the parameter set ``i % 2 + 2 * (j % 2)``: steps 1 and 2 have
    a set of their own for every group, and a larger step shares four sets by
    the parity of the offsets, which also decides the reading direction.

    Args:
        step: Distance between two positions of a group; 1 reads the whole map
            as one row-major sequence.

    Raises:
        ValueError: If the step is not an integer from 1 to
            :data:`evmamba_mm.arguments.MAX_STEP_SIZE`.
    """

    step: int = 2

    def __post_init__(self) -> None:
        check_step_size('step_size', self.step)

    @property
    def parameter_sets(self) -> tuple[int, ...]:
        """Index of the parameter set of each group."""
        offsets = range(self.step)
        return tuple(i % 2 + 2 * (j % 2) for j in offsets for i in offsets)

    def scan(self, x: Tensor) -> Tensor:
        """Read a feature map (B, H, W, C) as sequences (B, G, C, L).

        Zeros pad a map that the step does not divide on the right and at the
        bottom. The padding is part of the sequences, as in the released
        model.

        Raises:
            ValueError: If ``x`` is not a non-empty 4-D feature map.
        """
        _check_map(x)
        batch, height, width, channels = x.shape
        p = self.step
        # Not -(-height // p): ONNX rounds negative quotients towards zero.
        rows, cols = (height + p - 1) // p, (width + p - 1) // p
        x = F.pad(x, (0, 0, 0, cols * p - width, 0, rows * p - height))
        cells = x.reshape(batch, rows, p, cols, p, channels)
        by_row = cells.permute(0, 4, 2, 5, 1, 3)
        by_offset = [
            (by_row[:, :, i] if i % 2 == 0 else by_row[:, :, i].mT).reshape(
                batch, p, channels, rows * cols
            )
            for i in range(p)
        ]
        return torch.stack(by_offset, dim=2).flatten(1, 2)

    def merge(self, y: Tensor, height: int, width: int) -> Tensor:
        """Write sequences (B, G, C, L) to contiguous (B, H, W, C).

        Raises:
            ValueError: If the shape of ``y`` does not follow from the map's
                size.
        """
        p = self.step
        rows, cols = (height + p - 1) // p, (width + p - 1) // p
        if y.dim() != 4 or y.shape[1] != p * p or y.shape[3] != rows * cols:
            raise ValueError(
                f'y must have shape (B, {p * p}, C, {rows * cols}) for a map '
                f'of {height}x{width} and step_size {p}, got {tuple(y.shape)}'
            )
        batch, channels = y.shape[0], y.shape[2]
        groups = y.reshape(batch, p, p, channels, rows * cols)
        by_row = torch.stack(
            [
                groups[:, :, i].reshape(batch, p, channels, rows, cols)
                if i % 2 == 0
                else groups[:, :, i].reshape(batch, p, channels, cols, rows).mT
                for i in range(p)
            ],
            dim=2,
        )
        cells = by_row.permute(0, 4, 2, 5, 1, 3)
        padded = cells.reshape(batch, rows * p, cols * p, channels)
        # An index would make an exporter ask whether there was any padding.
        cut = padded.narrow(1, 0, height).narrow(2, 0, width)
        return cut.contiguous()


@dataclass(frozen=True)
class CrossDirections(Geometry):
    """The feature map once in each direction, summed: SS2D's sequences.

    Each direction has its own parameter set, also if a name is repeated.

    Args:
        directions: Names out of :data:`DIRECTIONS`, at least one.

    Raises:
        ValueError: If there is no direction or one has an unknown name.

    Source: VMamba (arXiv:2401.10166), the baseline of EfficientVMamba's
    Table 5.
    """

    directions: tuple[str, ...] = FOUR_DIRECTIONS

    def __post_init__(self) -> None:
        given = self.directions
        if (
            not isinstance(given, tuple)
            or not given
            or any(name not in DIRECTIONS for name in given)
        ):
            raise ValueError(
                f'directions must be a tuple of at least one of '
                f'{", ".join(DIRECTIONS)}, got {given!r}'
            )

    @classmethod
    def of(cls, directions: Sequence[str]) -> 'CrossDirections':
        """The geometry of a tuple or a list of directions."""
        is_list = isinstance(directions, list)
        return cls(tuple(directions) if is_list else directions)

    @property
    def parameter_sets(self) -> tuple[int, ...]:
        """Index of the parameter set of each direction: its place."""
        return tuple(range(len(self.directions)))

    def scan(self, x: Tensor) -> Tensor:
        """Read a feature map (B, H, W, C) as sequences (B, G, C, L).

        Raises:
            ValueError: If ``x`` is not a non-empty 4-D feature map.
        """
        _check_map(x)
        x = x.permute(0, 3, 1, 2)
        sequences = []
        for name in self.directions:
            path = name.removesuffix('_reversed')
            sequence = PATHS[path][0](x)
            sequences.append(sequence if path == name else sequence.flip(-1))
        return torch.stack(sequences, dim=1)

    def merge(self, y: Tensor, height: int, width: int) -> Tensor:
        """Sum sequences (B, G, C, L) into contiguous (B, H, W, C).

        Raises:
            ValueError: If the shape of ``y`` does not follow from the map's
                size.
        """
        count, cells = len(self.directions), height * width
        if y.dim() != 4 or y.shape[1] != count or y.shape[3] != cells:
            raise ValueError(
                f'y must have shape (B, {count}, C, {cells}) for a map of '
                f'{height}x{width}, got {tuple(y.shape)}'
            )
        sums = {}
        for k, name in enumerate(self.directions):
            path = name.removesuffix('_reversed')
            part = y[:, k] if path == name else y[:, k].flip(-1)
            sums[path] = sums[path] + part if path in sums else part
        maps = [PATHS[p][1](total, height, width) for p, total in sums.items()]
        merged = functools.reduce(torch.add, maps)
        # The merged map owns its memory, also of a single direction.
        return merged.permute(0, 2, 3, 1).clone(
            memory_format=torch.contiguous_format
        )


def atrous_parameter_sets(step_size: int) -> list[int]:
    """Index of the parameter set of each of the ``step_size**2`` groups.

    Args:
        step_size: Distance between two positions of a group.

    Returns:
        One index a group, in the order of :func:`atrous_scan`.
    """
    return list(AtrousGroups(step_size).parameter_sets)


def atrous_scan(x: Tensor, step_size: int = 2) -> Tensor:
    """Split a feature map into sequences of positions ``step_size`` apart.

    Args:
        x: Feature map of shape (B, H, W, C), any size from 1x1.
        step_size: Distance between two positions of a group.

    Returns:
        Sequences of shape (B, G, C, L); :class:`AtrousGroups` says which.

    Raises:
        ValueError: If ``x`` is not a non-empty 4-D feature map, or the step is
            illegal.
    """
    return AtrousGroups(step_size).scan(x)


def atrous_merge(
    y: Tensor, height: int, width: int, step_size: int = 2
) -> Tensor:
    """Put the sequences of :func:`atrous_scan` back into a map.

    Args:
        y: Sequences of shape (B, G, C, L).
        height: Rows of the map, before padding.
        width: Columns of the map, before padding.
        step_size: The step that the sequences were made with.

    Returns:
        Feature map of shape (B, H, W, C), channels innermost.

    Raises:
        ValueError: If the shape of ``y`` does not follow from the map's size.
    """
    _check_sequences(y, height, width)
    return AtrousGroups(step_size).merge(y, height, width)


def cross_scan(x: Tensor) -> Tensor:
    """Read a channels-last feature map in VMamba's four directions.

    Args:
        x: Feature map of shape (B, H, W, C).

    Returns:
        Sequences (B, 4, C, L), in the order of :data:`FOUR_DIRECTIONS`.

    Raises:
        ValueError: If ``x`` is not a non-empty 4-D feature map.
    """
    return CrossDirections().scan(x)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """Sum the four sequences of :func:`cross_scan` position by position.

    Args:
        y: Sequences of shape (B, 4, C, L).
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        Feature map of shape (B, H, W, C), channels innermost.

    Raises:
        ValueError: If the shape of ``y`` does not follow from the map's size.
    """
    _check_sequences(y, height, width)
    return CrossDirections().merge(y, height, width)
