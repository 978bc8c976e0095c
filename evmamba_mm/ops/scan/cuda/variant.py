"""Sizes that the kernels are compiled for, and how a map is cut up for them.

Shape letters: D inner channels, N states, R dt rank.
"""

import functools
from dataclasses import dataclass

import torch

from ..geometry import AtrousGroups, Geometry

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MAX_STATES = 128
# With these a warp of the backward fits into the smallest memory below.
MAX_RANK, MAX_RANK_OF_MANY = 224, 112
# Beyond so many states the second holds.
MANY_STATES = 64
# The forward has no sums over channels, so a lane best keeps all states of one
# channel. In the backward more of either sum then falls to the shuffles, and
# small squares of states and channels win.
_FORWARD_LANE = (16, 1)
_BACKWARD_LANE = (4, 2)
_MAX_WARPS = 6
# Shared memory of a block on the smallest GPUs that are served (sm_86).
_SMALLEST_MEMORY = 99 * 1024
# Warps that an SM holds at the backward's 168 registers a thread.
_WARPS_PER_SM = 12
# Every second state of a tile is kept in shared memory; every fourth where
# more warps then share a multiprocessor. Each block reserves some of it.
_GAPS = (2, 4)
_RESERVED = 1024
TILE = 16
# Chunks cost a second pass, so they have to win more than that.
_WORTH_CHUNKS = 3
_MIN_TILES_PER_CHUNK = 4


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def proj_columns(states: int, rank: int) -> int:
    """Columns of a projected row: B, C, dt, and padding to whole vectors."""
    return _round_up(2 * states + rank, 8)


def sequence_length(geometry: Geometry, height: int, width: int) -> int:
    """Steps of each sequence of a map, padding included."""
    step = geometry.step if isinstance(geometry, AtrousGroups) else 1
    return -(-height // step) * -(-width // step)


def numbers_served(states: int, rank: int) -> bool:
    """Whether the kernels have room for this many states and this rank."""
    largest = MAX_RANK_OF_MANY if states > MANY_STATES else MAX_RANK
    return states <= MAX_STATES and rank <= largest


def dtype_served(dtype: torch.dtype) -> bool:
    """Whether the kernels read and write this dtype."""
    return dtype in _DTYPES


@functools.cache
def device_served(device: torch.device) -> bool:
    """Whether the kernels run on this device: a GPU from sm_80 on."""
    if device.type != 'cuda' or not torch.cuda.is_available():
        return device.type == 'cuda'
    # Older ones do not convert to bf16.
    return torch.cuda.get_device_capability(device)[0] >= 8


@dataclass(frozen=True)
class Variant:
    """One set of compile-time constants; see ``common.cuh``."""

    dtype: torch.dtype
    channels: int
    states: int
    rank: int
    lane_states: int
    lane_channels: int
    state_lanes: int
    warps: int
    gap: int = _GAPS[0]

    @property
    def block_channels(self) -> int:
        """Channels that a block scans."""
        return self.warps * 32 // self.state_lanes * self.lane_channels

    @property
    def splits(self) -> int:
        """Blocks that share the channels of a sequence."""
        return -(-self.channels // self.block_channels)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    def constants(self, backward: bool) -> tuple[tuple[str, int], ...]:
        """Preprocessor definitions."""
        shared = (
            ('DTYPE', _DTYPES[self.dtype]),
            ('D', self.channels),
            ('N', self.states),
            ('R', self.rank),
            ('SN', self.lane_states),
            ('SD', self.lane_channels),
            ('NL', self.state_lanes),
            ('WARPS', self.warps),
            ('TILE', TILE),
            ('SHARED', self.shared_bytes(backward)),
        )
        if not backward:
            return shared
        return (
            *shared,
            ('GAP', self.gap),
            ('BLOCKS', _WARPS_PER_SM // self.warps),
        )

    @property
    def _proj_row(self) -> int:
        padded = 2 * self.lane_states * self.state_lanes
        return _round_up(padded + self.rank, 8)

    def blocks_of_backward(self, memory: int) -> int:
        """Backward blocks that share a multiprocessor.

        Args:
            memory: Bytes of shared memory that a block can have.
        """
        fitting = (memory + _RESERVED) // (self.backward_bytes + _RESERVED)
        return min(fitting, _WARPS_PER_SM // self.warps)

    def shared_bytes(self, backward: bool) -> int:
        """Shared memory of a block."""
        return self.backward_bytes if backward else self.forward_bytes

    @property
    def forward_bytes(self) -> int:
        """Shared memory of a forward or chunk block."""
        row = 2 * (self.block_channels + 4) + 2 * self._proj_row + 4
        return TILE * (4 * row + self.block_channels * self.dtype.itemsize)

    @property
    def backward_bytes(self) -> int:
        """Shared memory of a backward block."""
        rows = 2 + 2 * self.warps
        row = 3 * (self.block_channels + 4) + rows * self._proj_row
        kept = self.lane_states * self.lane_channels * self.threads // self.gap
        weights = self.block_channels * _round_up(self.rank, 4)
        size = 4 * (TILE * (row + kept + 4) + weights)
        return size + 2 * TILE * self.block_channels * self.dtype.itemsize


def _power_of_two(at_least: int) -> int:
    return 1 << max(0, at_least - 1).bit_length()


@functools.cache
def choose_variant(
    dtype: torch.dtype,
    channels: int,
    states: int,
    rank: int,
    backward: bool = False,
    memory: int = _SMALLEST_MEMORY,
) -> Variant:
    """Variant for these sizes.

    It has the number of warps per block that leaves the fewest channels idle.

    Args:
        dtype: Of the maps.
        channels: D.
        states: N.
        rank: R.
        backward: For which of the two kernels.
        memory: Bytes of shared memory that a block can have.
    """
    lane_states, lane_channels = _BACKWARD_LANE if backward else _FORWARD_LANE
    lane_states = min(lane_states, max(4, _power_of_two(states)))
    state_lanes = _power_of_two(-(-states // lane_states))
    lane_channels = min(lane_channels, state_lanes)
    per_warp = 32 // state_lanes * lane_channels
    needed = -(-channels // per_warp)
    sizes = (channels, states, rank, lane_states, lane_channels, state_lanes)
    variants = [
        Variant(dtype, *sizes, warps, gap)
        for warps in range(1, min(needed, _MAX_WARPS) + 1)
        for gap in (_GAPS if backward else _GAPS[:1])
    ]
    fitting = [v for v in variants if v.shared_bytes(backward) <= memory]

    def preference(variant: Variant) -> tuple[int, ...]:
        blocks = variant.blocks_of_backward(memory) if backward else 0
        idle = variant.splits * variant.warps
        return idle, -variant.warps, -blocks, variant.gap

    # One warp fits into any GPU's memory.
    return min(fitting or variants[:1], key=preference)


@functools.cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def shared_memory(device: int) -> int:
    """Bytes of shared memory that a block can have on a device."""
    properties = torch.cuda.get_device_properties(device)
    return getattr(
        properties, 'shared_memory_per_block_optin', _SMALLEST_MEMORY
    )


@dataclass(frozen=True)
class Plan:
    """How a batch of maps is cut into tiles and chunks."""

    tiles: int
    chunks: int
    tiles_per_chunk: int


def plan_chunks(
    variant: Variant, sequences: int, length: int, device: int
) -> Plan:
    """As many chunks as fill the GPU, where whole sequences would not."""
    tiles = -(-length // TILE)
    warps = sequences * variant.splits * variant.warps
    wanted = _multiprocessors(device) * _WARPS_PER_SM // max(1, warps)
    chunks = min(wanted, tiles // _MIN_TILES_PER_CHUNK)
    if chunks < _WORTH_CHUNKS:
        return Plan(tiles, 1, tiles)
    tiles_per_chunk = -(-tiles // chunks)
    return Plan(tiles, -(-tiles // tiles_per_chunk), tiles_per_chunk)
