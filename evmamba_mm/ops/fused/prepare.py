"""Weights as an inference reads them, made anew by one launch.

Batch norms folded into the weights before them and casts to the autocast
dtype take a launch a weight otherwise, and the CPU longer than the GPU.
"""

import functools
import struct
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor


@functools.cache
def _kernels() -> ModuleType:
    """The kernels, which are the first to import Triton."""
    from . import prepare_triton

    return prepare_triton


class BatchNormTensors(NamedTuple):
    """What a batch norm in evaluation computes with, (out,) each."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


class WeightJob(NamedTuple):
    """One weight to make, and its bias.

    Args:
        weight: Of a convolution or linear layer, (out, ...).
        bias: (out,), or None.
        norm: The batch norm to fold in, or None for a cast.
        eps: What the norm adds to the variance.
        dtype: Of the results.
    """

    weight: Tensor
    bias: Tensor | None
    norm: BatchNormTensors | None
    eps: float
    dtype: torch.dtype

    @property
    def sources(self) -> list[Tensor]:
        """All tensors that are read."""
        bias = [] if self.bias is None else [self.bias]
        return [self.weight, *bias, *(self.norm or ())]


def can_prepare(job: WeightJob) -> bool:
    """Whether the kernel reads all sources of a job: dense and in fp32."""
    return all(
        x.dtype == torch.float32
        and x.is_contiguous()
        and x.device == job.weight.device
        for x in job.sources
    )


def _bits(number: float) -> int:
    return struct.unpack('<i', struct.pack('<f', number))[0]


def _records(
    job: WeightJob, weight: Tensor, bias: Tensor | None
) -> list[list[int]]:
    """The kernel's records of a job, with what they write."""
    kernels = _kernels()
    narrow = int(job.dtype != torch.float32)
    rows, size = job.weight.shape[0], job.weight.numel()
    norm = [x.data_ptr() for x in job.norm or ()] or [0] * 4
    source = 0 if job.bias is None else job.bias.data_ptr()
    kinds = (kernels.COPY, kernels.COPY)
    if job.norm is not None:
        kinds = (kernels.SCALE, kernels.SHIFT)
    eps = _bits(job.eps)
    records = [
        [kinds[0], narrow, size, size // max(rows, 1), eps]
        + [weight.data_ptr(), job.weight.data_ptr(), *norm]
    ]
    if bias is not None:
        records.append(
            [kinds[1], narrow, rows, 1, eps, bias.data_ptr(), source, *norm]
        )
    return records


class PreparedWeights:
    """Memory for the weights of some jobs, filled by :meth:`refresh`.

    The addresses of the sources are taken once: whoever uses this has to see
    that they have not changed.

    Args:
        jobs: At least one, all of which :func:`can_prepare`, on one device,
            their dtypes fp32 or one other.

    Raises:
        ValueError: If there is no job, one cannot be prepared, or the
            devices or dtypes are more than that.
    """

    def __init__(self, jobs: Sequence[WeightJob]) -> None:
        if not jobs or not all(can_prepare(job) for job in jobs):
            raise ValueError(
                'jobs must be one or more whose tensors are dense and in '
                f'fp32, got {len(jobs)} jobs'
            )
        dtypes = {job.dtype for job in jobs} - {torch.float32}
        devices = {job.weight.device for job in jobs}
        if len(dtypes) > 1 or len(devices) > 1:
            raise ValueError(
                'jobs must have one device, and one dtype beside fp32, got '
                f'{sorted(map(str, devices))} and {sorted(map(str, dtypes))}'
            )
        self.sources = [x for job in jobs for x in job.sources]
        self.results: list[tuple[Tensor, Tensor | None]] = []
        self.dtype = dtypes.pop() if dtypes else torch.float32
        records = []
        for job in jobs:
            weight = torch.empty_like(job.weight, dtype=job.dtype)
            bias = None
            if job.norm is not None or job.bias is not None:
                bias = weight.new_empty(job.weight.shape[0])
            self.results.append((weight.detach(), bias))
            records += _records(job, weight, bias)
        self._upload(records, jobs[0].weight.device)

    def _upload(self, records: list[list[int]], device: torch.device) -> None:
        block = _kernels().BLOCK
        blocks = [
            (number, first)
            for number, record in enumerate(records)
            for first in range(0, record[2], block)
        ]
        self._jobs = torch.tensor(records, device=device)
        self._blocks = torch.tensor(blocks, device=device)

    def refresh(self) -> None:
        """Fill the results from what the sources hold now."""
        _kernels().prepare(self._jobs, self._blocks, self.dtype)
