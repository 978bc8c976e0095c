"""Runs the kernels on checked tensors.

Shape letters: B batch, H W feature map, D inner channels, G sequences of a
map, K parameter sets, N states, R dt rank.
"""

import ctypes
import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...triton import triton_installed
from ..geometry import AtrousGroups, CrossDirections, Geometry
from .compiler import launch, load_kernel
from .variant import (
    Plan,
    Variant,
    choose_variant,
    plan_chunks,
    proj_columns,
    sequence_length,
    shared_memory,
)

_JOIN_THREADS = 256


@dataclass(frozen=True, eq=False)
class Call:
    """Numbers that the kernels of one scan share; kept for later scans."""

    variant: Variant
    plan: Plan
    batch: int
    height: int
    width: int
    geometry: Geometry
    device: int
    kernels: dict[str, object] = field(default_factory=dict)

    @functools.cached_property
    def groups(self) -> int:
        """Sequences of a feature map."""
        return self.geometry.sequences

    @functools.cached_property
    def cross(self) -> bool:
        """Whether each sequence reads the whole feature map."""
        return isinstance(self.geometry, CrossDirections)

    @property
    def tokens(self) -> int:
        """Positions of a feature map."""
        return self.height * self.width

    @property
    def columns(self) -> int:
        """Projected numbers of a step."""
        return proj_columns(self.variant.states, self.variant.rank)

    @functools.cached_property
    def kernel_geometry(self) -> ctypes.Array:
        """The kernels' ``Geometry``."""
        step = 1 if self.cross else self.geometry.step
        values = (self.height, self.width, step, self.cross, self.groups)
        plan = (self.plan.chunks, self.plan.tiles_per_chunk)
        return (ctypes.c_int32 * 8)(*values, *plan, self.variant.splits)

    @functools.cached_property
    def proj_strides(self) -> tuple[int, int]:
        """Strides between positions and between parameter sets."""
        if self.cross:
            return self.geometry.sets * self.columns, self.columns
        return self.columns, 0

    def map_offset(self, tensor: Tensor) -> int:
        """Between the maps of two directions, if each has its own."""
        return tensor[0].numel() if tensor.dim() == 5 else 0

    @functools.cached_property
    def blocks(self) -> int:
        """Blocks of a launch."""
        sequences = self.batch * self.groups
        return sequences * self.plan.chunks * self.variant.splits

    def kernel(self, source: str, function: str, shared: int) -> object:
        """A kernel of a source file, compiled for this call."""
        # The names of the functions differ throughout the files.
        kernel = self.kernels.get(function)
        if kernel is None:
            constants = self.variant.constants(source == 'backward.cu')
            kernel = self.kernels[function] = load_kernel(
                source, function, constants, shared, self.device
            )
        return kernel

    def run(
        self, source: str, function: str, shared: int, *numbers: int
    ) -> None:
        """Launch one of the kernels whose arguments are all 64 bits wide."""
        arguments = (ctypes.c_int64 * len(numbers))(*numbers)
        launch(
            self.kernel(source, function, shared),
            self.blocks,
            self.variant.threads,
            shared,
            (self.kernel_geometry, arguments),
        )


def geometry_served(geometry: Geometry) -> bool:
    """Whether the kernels scan this geometry.

    They have four directions built in, in this order, in common.cuh.
    """
    if isinstance(geometry, CrossDirections):
        built_in = ('rows', 'columns', 'rows_reversed', 'columns_reversed')
        return geometry.directions == built_in
    return isinstance(geometry, AtrousGroups)


@functools.lru_cache(maxsize=1024)
def _plan_call(
    size: torch.Size,
    dtype: torch.dtype,
    device: int,
    states: int,
    rank: int,
    sets: int,
    geometry: Geometry,
    backward: bool,
) -> Call:
    if not geometry_served(geometry) or sets != geometry.sets:
        raise ValueError(
            'the kernels scan atrous groups or the default four directions '
            f'with {geometry.sets} parameter sets, got {geometry} and {sets} '
            'parameter sets'
        )
    batch, height, width, channels = size
    variant = choose_variant(
        dtype, channels, states, rank, backward, shared_memory(device)
    )
    plan = plan_chunks(
        variant,
        batch * geometry.sequences,
        sequence_length(geometry, height, width),
        device,
    )
    return Call(variant, plan, batch, height, width, geometry, device)


def _call(
    u: Tensor,
    dt_weight: Tensor,
    A_logs: Tensor,
    geometry: Geometry,
    backward: bool = False,
) -> Call:
    sets, _, rank = dt_weight.shape
    return _plan_call(
        u.shape,
        u.dtype,
        u.device.index,
        A_logs.shape[1],
        rank,
        sets,
        geometry,
        backward,
    )


def as_parameter(x: Tensor) -> Tensor:
    """A parameter as the kernels read it: dense and in fp32."""
    if x.dtype == torch.float32 and x.is_contiguous():
        return x
    return x.float().contiguous()


def _new_maps(call: Call, u: Tensor) -> Tensor:
    """Map to write to, or one for each direction of ``cross``."""
    if call.cross:
        return u.new_empty((call.groups, *u.shape))
    return torch.empty_like(u)


def _merge_maps(call: Call, maps: Tensor) -> Tensor:
    # Without a dtype, autocast would make it fp32.
    return maps.sum(0, dtype=maps.dtype) if call.cross else maps


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense(tensor: Tensor) -> Tensor:
    """The tensor if it is contiguous and 16 bytes can be read at once."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _chunk_starts(
    call: Call,
    values: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    backward: bool,
) -> Tensor | None:
    """Initial states of each chunk, (B*G, chunks, D, N)."""
    variant, chunks = call.variant, call.plan.chunks
    if chunks == 1:
        return None
    sequences = call.batch * call.groups
    size = (sequences, chunks, variant.channels, variant.states)
    states = A_logs.new_empty(size)
    passed = A_logs.new_empty(size[:-1])
    call.run(
        'chunks.cu',
        'chunk_backward' if backward else 'chunk_forward',
        variant.forward_bytes,
        *(_pointer(x) for x in (values, proj, dt_weight, dt_bias, A_logs)),
        *(_pointer(x) for x in (states, passed)),
        *call.proj_strides,
        call.map_offset(values),
    )
    kernel = call.kernel('chunks.cu', 'chunk_join', 0)
    threads = sequences * variant.channels * variant.states
    launch(
        kernel,
        -(-threads // _JOIN_THREADS),
        _JOIN_THREADS,
        0,
        (
            call.kernel_geometry,
            *(ctypes.c_void_p(_pointer(x)) for x in (states, passed, A_logs)),
            ctypes.c_int64(sequences),
            ctypes.c_int32(backward),
        ),
    )
    return states


def run_forward(
    u: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    geometry: Geometry,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Merged map and, if ``save``, the states at the start of every tile."""
    # The batching rule of torch.func.vmap hands over slices of any layout.
    u, proj = _dense(u), _dense(proj)
    dt_weight, dt_bias, A_logs, Ds = map(
        as_parameter, (dt_weight, dt_bias, A_logs, Ds)
    )
    call = _call(u, dt_weight, A_logs, geometry)
    saved = None
    if save:
        variant, sequences = call.variant, call.batch * call.groups
        states = (variant.channels, variant.states)
        saved = A_logs.new_empty((sequences, call.plan.tiles, *states))
    y = _new_maps(call, u)
    if u.numel() > 0:
        parameters = (dt_weight, dt_bias, A_logs)
        start = _chunk_starts(call, u, proj, *parameters, backward=False)
        call.run(
            'forward.cu',
            'scan_forward',
            call.variant.forward_bytes,
            *(_pointer(x) for x in (u, proj, *parameters, Ds, y, start)),
            _pointer(saved),
            *call.proj_strides,
            call.map_offset(y),
        )
    return _merge_maps(call, y), saved


def _sum_parts(parts: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    if parts.is_cuda and parts.numel() > 0 and triton_installed():
        from ...triton.sums import sum_parts

        return sum_parts(parts, dim, dtype)
    return parts.sum(dim).to(dtype)


def _sum_groups(call: Call, values: Tensor) -> Tensor:
    """(B*G, chunks, ...) to (K, ...): one sum per parameter set."""
    by_group = values.view(call.batch, call.groups, *values.shape[1:])
    for dim in (0, 1):
        by_group = _sum_parts(by_group, dim, values.dtype)
    sets, count = call.geometry.parameter_sets, call.geometry.sets
    if call.groups == count:
        return by_group
    # By slices: an index would have to be copied to the GPU, which a CUDA
    # graph does not allow.
    return torch.stack(
        [
            sum(by_group[g] for g, mine in enumerate(sets) if mine == k)
            for k in range(count)
        ]
    )


def run_backward(
    dy: Tensor,
    u: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    saved: Tensor,
    geometry: Geometry,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six differentiable arguments of the forward."""
    call = _call(u, dt_weight, A_logs, geometry, backward=True)
    variant, plan = call.variant, call.plan
    dy, u, proj, saved = map(_dense, (dy, u, proj, saved))
    dt_weight, dt_bias, A_logs, Ds = map(
        as_parameter, (dt_weight, dt_bias, A_logs, Ds)
    )
    du = _new_maps(call, u)
    dproj = torch.empty_like(proj)
    several = variant.splits > 1
    parts = (
        A_logs.new_empty((variant.splits, *proj.shape)) if several else None
    )
    slots = (call.batch * call.groups, plan.chunks, variant.channels)
    dA = A_logs.new_empty((*slots, variant.states))
    dsize = A_logs.new_empty((*slots, 2 + variant.rank))
    if u.numel() > 0:
        parameters = (dt_weight, dt_bias, A_logs)
        start = _chunk_starts(call, dy, proj, *parameters, backward=True)
        inputs = (dy, u, proj, *parameters, Ds, saved, start)
        outputs = (du, dproj, parts, dA, dsize)
        call.run(
            'backward.cu',
            'scan_backward',
            variant.backward_bytes,
            *(_pointer(x) for x in (*inputs, *outputs)),
            *call.proj_strides,
            0,
            call.map_offset(du),
            proj.numel(),
        )
    if several:
        dproj = _sum_parts(parts, 0, proj.dtype)
    dA_logs = _sum_groups(call, dA).flatten(0, 1) * -torch.exp(A_logs)
    dbias, dskip, dweight = _sum_groups(call, dsize).split(
        [1, 1, variant.rank], dim=-1
    )
    # Copies, since the results of a custom op may not share memory.
    return (
        _merge_maps(call, du),
        dproj,
        dweight.clone(memory_format=torch.contiguous_format),
        dbias.squeeze(-1).clone(memory_format=torch.contiguous_format),
        dA_logs,
        dskip.flatten().clone(),
    )
