"""Weights as an inference reads them, made anew by one launch.

Batch norms folded into the weights before them and casts to the autocast
dtype take a launch a weight otherwise, and the CPU longer than the GPU.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .shortcut import lazy_kernels

_kernels = lazy_kernels('prepare_triton')


class BatchNormTensors(NamedTuple):
    """What a batch norm in evaluation computes with, (out,) each."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


class RowLayout(NamedTuple):
    """Where a result has the rows of its weight.

    A row is the last dimension; rows of all other dimensions are counted on.

    Args:
        shape: Of the result; rows that nothing is copied to are zero.
        blocks: First row in the weight, first row in the result and count of
            those that are copied.
    """

    shape: tuple[int, ...]
    blocks: tuple[tuple[int, int, int], ...]


class WeightJob(NamedTuple):
    """One weight to make, and its bias.

    Args:
        weight: Of a convolution or linear layer, (out, ...).
        bias: (out,), or None.
        norm: The batch norm to fold in, or None for a cast.
        eps: What the norm adds to the variance.
        dtype: Of the results.
        layout: Where the rows go, of a weight without bias and norm; None to
            leave them in place.
    """

    weight: Tensor
    bias: Tensor | None
    norm: BatchNormTensors | None
    eps: float
    dtype: torch.dtype
    layout: RowLayout | None = None

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


def _results(job: WeightJob) -> tuple[Tensor, Tensor | None]:
    """Memory for the weight and the bias of a job."""
    if job.layout is not None:
        # Here and not by the kernel: padding stays what it is.
        return job.weight.new_zeros(job.layout.shape, dtype=job.dtype), None
    weight = torch.empty_like(job.weight, dtype=job.dtype).detach()
    if job.norm is None and job.bias is None:
        return weight, None
    return weight, weight.new_empty(job.weight.shape[0])


def _moved_rows(job: WeightJob, result: Tensor) -> list[list[int]]:
    """The kernel's records of a job with a layout: one a block of rows."""
    source, row = job.weight, job.weight.shape[-1]
    narrow = int(job.dtype != torch.float32)
    return [
        [_kernels().COPY, narrow, count * row, row, 0]
        + [result.data_ptr() + target * row * result.element_size()]
        + [source.data_ptr() + first * row * source.element_size()]
        + [0] * 4
        for first, target, count in job.layout.blocks
    ]


def _records(
    job: WeightJob, weight: Tensor, bias: Tensor | None
) -> list[list[int]]:
    """The kernel's records of a job, with what they write."""
    if job.layout is not None:
        return _moved_rows(job, weight)
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
        ValueError: If there is no job, one cannot be prepared or has a
            layout and what it is not for, or the devices or dtypes are more
            than that.
    """

    def __init__(self, jobs: Sequence[WeightJob]) -> None:
        if not jobs or not all(can_prepare(job) for job in jobs):
            raise ValueError(
                'jobs must be one or more whose tensors are dense and in '
                f'fp32, got {len(jobs)} jobs'
            )
        for job in jobs:
            if job.layout is not None and len(job.sources) > 1:
                raise ValueError(
                    'a job with a layout must have neither bias nor norm, '
                    f'got one with a weight of {tuple(job.weight.shape)}'
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
            weight, bias = _results(job)
            self.results.append((weight, bias))
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
