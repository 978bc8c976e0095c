"""Runs the kernels on checked tensors.

Shape letters: B batch, H W map, D inner channels, G sequences of a map,
K parameter sets, N states, R dt rank.
"""

import ctypes
import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..atrous import atrous_parameter_sets
from ..fused.sums import add_up
from .compiler import launch, load_kernel
from .variant import (
    Plan,
    Variant,
    choose_variant,
    plan_chunks,
    proj_columns,
    shared_memory,
)

_JOIN_THREADS = 256


@dataclass(frozen=True, eq=False)
class Call:
    """What every kernel of one scan has in common, for all scans alike."""

    variant: Variant
    plan: Plan
    batch: int
    height: int
    width: int
    step: int
    cross: bool
    device: int
    kernels: dict[str, object] = field(default_factory=dict)

    @functools.cached_property
    def groups(self) -> int:
        """Sequences of a map."""
        return 4 if self.cross else self.step**2

    @property
    def tokens(self) -> int:
        """Cells of a map."""
        return self.height * self.width

    @property
    def columns(self) -> int:
        """Projected numbers of a step."""
        return proj_columns(self.variant.states, self.variant.rank)

    @functools.cached_property
    def geometry(self) -> ctypes.Array:
        """The kernels' ``Geometry``."""
        values = (self.height, self.width, self.step, self.cross, self.groups)
        plan = (self.plan.chunks, self.plan.tiles_per_chunk)
        return (ctypes.c_int32 * 8)(*values, *plan, self.variant.splits)

    @functools.cached_property
    def proj_strides(self) -> tuple[int, int]:
        """Between the rows of two cells and of two parameter sets."""
        sets = 4 if self.cross else 1
        return sets * self.columns, self.columns if self.cross else 0

    def map_offset(self, tensor: Tensor) -> int:
        """Between two directions' maps, where each has its own."""
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
            (self.geometry, arguments),
        )


@functools.lru_cache(maxsize=1024)
def _plan_call(
    size: torch.Size,
    dtype: torch.dtype,
    device: int,
    states: int,
    rank: int,
    step: int,
    cross: bool,
    backward: bool,
) -> Call:
    batch, height, width, channels = size
    variant = choose_variant(
        dtype, channels, states, rank, backward, shared_memory(device)
    )
    groups = 4 if cross else step**2
    length = -(-height // step) * -(-width // step)
    plan = plan_chunks(variant, batch * groups, length, device)
    return Call(variant, plan, batch, height, width, step, cross, device)


def _call(
    u: Tensor,
    dt_weight: Tensor,
    A_logs: Tensor,
    step: int,
    cross: bool,
    backward: bool = False,
) -> Call:
    states, rank = A_logs.shape[1], dt_weight.shape[2]
    return _plan_call(
        u.shape, u.dtype, u.device.index, states, rank, step, cross, backward
    )


def as_parameter(x: Tensor) -> Tensor:
    """A parameter as the kernels read it: dense and in fp32."""
    if x.dtype == torch.float32 and x.is_contiguous():
        return x
    return x.float().contiguous()


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor where 16 bytes can be read at once, copied if it is not."""
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
    """States that each chunk starts with, (B*G, chunks, D, N)."""
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
            call.geometry,
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
    step: int,
    cross: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Merged map, and the states at the start of every tile if asked for."""
    u, proj = _aligned(u), _aligned(proj)
    call = _call(u, dt_weight, A_logs, step, cross)
    saved = None
    if save:
        variant, sequences = call.variant, call.batch * call.groups
        states = (variant.channels, variant.states)
        saved = A_logs.new_empty((sequences, call.plan.tiles, *states))
    y = u.new_empty((4, *u.shape)) if cross else torch.empty_like(u)
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
    return (y.sum(0) if cross else y), saved


def _sum_groups(call: Call, values: Tensor) -> Tensor:
    """(B*G, chunks, ...) to (K, ...): one sum a parameter set."""
    by_group = values.view(call.batch, call.groups, *values.shape[1:])
    for dim in (0, 1):
        by_group = add_up(by_group, dim, values.dtype)
    if call.cross or call.step <= 2:
        return by_group
    # By slices: an index would have to be copied to the GPU, which a CUDA
    # graph does not allow.
    sets = atrous_parameter_sets(call.step)
    return torch.stack(
        [
            sum(by_group[g] for g, mine in enumerate(sets) if mine == k)
            for k in range(4)
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
    step: int,
    cross: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six differentiable arguments of the forward."""
    call = _call(u, dt_weight, A_logs, step, cross, backward=True)
    variant, plan = call.variant, call.plan
    dy, u, proj = _aligned(dy), _aligned(u), _aligned(proj)
    du = u.new_empty((4, *u.shape)) if cross else torch.empty_like(u)
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
        dproj = add_up(parts, 0, proj.dtype)
    dA_logs = _sum_groups(call, dA).flatten(0, 1) * -torch.exp(A_logs)
    dbias, dskip, dweight = _sum_groups(call, dsize).split(
        [1, 1, variant.rank], dim=-1
    )
    return (
        du.sum(0) if cross else du,
        dproj,
        dweight.contiguous(),
        dbias.squeeze(-1).contiguous(),
        dA_logs,
        dskip.reshape(-1).contiguous(),
    )
