import pytest
import torch

from evmamba_mm.ops import (
    BatchNormTensors,
    PreparedWeights,
    RowLayout,
    WeightJob,
    can_prepare,
    fold_batch_norm,
)
from evmamba_mm.ops.scan_cuda import kernel_rows, scan_row_layout

from ..scan_cases import relative_error
from .kernel_cases import DTYPES, normal

# A weight of several blocks, of less than one, a depthwise and a wide one.
SHAPES = [(48, 33), (5, 3), (7, 1, 3, 3), (3, 2048)]


def norm_of(channels, device):
    mean, weight, bias = (
        normal(channels, seed=i, dtype=torch.float32, device=device)
        for i in range(3)
    )
    return BatchNormTensors(weight, bias, mean, mean.square() + 0.1)


def jobs_of(dtype, device):
    jobs = []
    for i, shape in enumerate(SHAPES):
        weight = normal(*shape, dtype=torch.float32, device=device)
        bias = normal(shape[0], seed=5, dtype=torch.float32, device=device)
        norm = norm_of(shape[0], device)
        kind = torch.float32 if len(shape) == 4 else dtype
        jobs += [
            WeightJob(weight, bias if i % 2 else None, norm, 1e-3, kind),
            WeightJob(weight, None if i % 2 else bias, None, 0.0, dtype),
        ]
    return jobs


def expected(job):
    if job.norm is None:
        bias = None if job.bias is None else job.bias.to(job.dtype)
        return job.weight.to(job.dtype), bias
    return fold_batch_norm(
        job.weight,
        job.bias,
        *job.norm,
        job.eps,
        job.dtype,
        backend='torch',
    )


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_results_are_those_of_one_weight_at_a_time(dtype, device):
    jobs = jobs_of(dtype, device)
    weights = PreparedWeights(jobs)
    for weight, bias in weights.results:
        weight.fill_(float('nan'))
        if bias is not None:
            bias.fill_(float('nan'))
    weights.refresh()
    # Triton's interpreter cuts a bfloat16 off where a GPU rounds it.
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3}.get(dtype, 8e-3)
    for job, made in zip(jobs, weights.results, strict=True):
        for value, reference in zip(made, expected(job), strict=True):
            assert (value is None) == (reference is None)
            if value is not None:
                assert value.dtype == reference.dtype
                assert value.shape == reference.shape
                assert relative_error(value, reference) < tolerance


def test_a_refresh_sees_changes_that_autograd_does_not(device):
    job = jobs_of(torch.float32, device)[0]
    weights = PreparedWeights([job])
    weights.refresh()
    first = weights.results[0][0].clone()
    job.weight.data.mul_(2)
    weights.refresh()
    torch.testing.assert_close(weights.results[0][0], 2 * first)


def test_what_the_kernel_cannot_read_is_refused(device):
    weight = normal(4, 6, dtype=torch.float32, device=device)
    for other in (weight.t(), weight.double(), weight.half()):
        job = WeightJob(other, None, None, 0.0, torch.float16)
        assert not can_prepare(job)
        with pytest.raises(ValueError, match='dense and in fp32'):
            PreparedWeights([job])
    with pytest.raises(ValueError, match='got 0 jobs'):
        PreparedWeights([])
    jobs = [
        WeightJob(weight, None, None, 0.0, dtype)
        for dtype in (torch.float16, torch.bfloat16)
    ]
    with pytest.raises(ValueError, match='one dtype beside fp32'):
        PreparedWeights(jobs)


@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    'rank, states, channels', [(3, 16, 96), (1, 1, 5), (7, 4, 300)]
)
@pytest.mark.parametrize('sets', [1, 4])
def test_rows_go_where_the_scan_reads_them(
    sets, rank, states, channels, dtype, device
):
    shape = (sets, rank + 2 * states, channels)
    weight = normal(*shape, dtype=torch.float32, device=device)
    # What the interpreter cuts off must not be there.
    weight = weight.bfloat16().float()
    layout = scan_row_layout(weight.shape, states)
    others = jobs_of(dtype, device)[:2]
    rows = WeightJob(weight, None, None, 0.0, dtype, layout)
    weights = PreparedWeights([others[0], rows, others[1]])
    result, bias = weights.results[1]
    assert bias is None
    filled = rank + 2 * states
    result[:, :filled] = float('nan')
    weights.refresh()
    expected = kernel_rows(weight, states).to(dtype)
    assert result.shape == expected.shape
    assert result.dtype == dtype
    assert torch.equal(result[:, :filled], expected[:, :filled])
    assert not result[:, filled:].any()
    weight.mul_(2)
    weights.refresh()
    assert torch.equal(result[:, :filled], 2 * expected[:, :filled])


def test_a_layout_is_for_a_weight_alone(device):
    job = jobs_of(torch.float32, device)[1]
    layout = RowLayout(tuple(job.weight.shape), ((0, 0, 1),))
    with pytest.raises(ValueError, match='neither bias nor norm'):
        PreparedWeights([job._replace(layout=layout)])
