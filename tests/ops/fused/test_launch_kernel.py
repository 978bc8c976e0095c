"""A real kernel launched by the JIT and past it."""

import pytest
import torch

from .kernel_cases import DTYPES, normal

triton = pytest.importorskip('triton', reason='triton is not installed')
launch_module = pytest.importorskip('evmamba_mm.ops.fused.launch')
launch = launch_module.launch
tl = triton.language

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA GPU'
)


@triton.jit
def _scale_kernel(
    out_ptr, x_ptr, shift_ptr, count, factor,
    BLOCK: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = places < count
    x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) * factor
    if shift_ptr is not None:
        x += tl.load(shift_ptr + places, mask=mask, other=0.0).to(tl.float32)
    if DOUBLE:
        x *= 2.0
    tl.store(out_ptr + places, x.to(out_ptr.dtype.element_ty), mask=mask)


def scale(out, x, shift, factor=0.5, double=False):
    count = x.numel()
    launch(
        _scale_kernel,
        (-(-count // 128), 1, 1),
        (out, x, shift),
        (count, factor),
        (128, double),
        4,
    )
    return out


def expected(x, shift, factor=0.5, double=False):
    y = x.float() * factor + (0.0 if shift is None else shift.float())
    return (2 * y if double else y).to(x.dtype)


@pytest.fixture
def nothing_kept(monkeypatch):
    kept = {}
    monkeypatch.setattr(launch_module, '_kept', kept)
    return kept


# Of the counts, 1 is a constant to the JIT and 256 divisible by 16.
@pytest.mark.parametrize('count', [1, 256, 301])
@pytest.mark.parametrize('first', [0, 1], ids=['aligned', 'unaligned'])
@pytest.mark.parametrize('dtype', DTYPES.values(), ids=DTYPES)
def test_both_ways_give_the_same(dtype, first, count, device, nothing_kept):
    memory = normal(4, 512, dtype=dtype, device=device)
    out, by_jit, x, shift = memory[:, first : first + count]
    for here in (None, shift):
        for factor, double in ((0.5, False), (1.0, True), (0.5, False)):
            for _ in range(3):
                out.fill_(float('nan'))
                scale(out, x, here, factor, double)
                grid = (-(-count // 128),)
                _scale_kernel[grid](
                    by_jit, x, here, count, factor, 128, double
                )
                assert torch.equal(out, by_jit)
    kept = 4 if device == 'cuda' and first == 0 else 0
    if launch_module._KNOWN:
        assert len(nothing_kept) == kept


@needs_gpu
def test_kept_kernel_in_a_cuda_graph(nothing_kept):
    x, shift = normal(2, 256, dtype=torch.float32, device='cuda')
    out = torch.empty_like(x)
    scale(out, x, shift)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scale(out, x, shift)
    x.copy_(x + 1)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected(x, shift))


@needs_gpu
def test_kept_kernel_on_the_current_stream(nothing_kept):
    x = normal(1 << 24, dtype=torch.float32, device='cuda')
    out = scale(torch.empty_like(x), x, None)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(50):
            x.add_(1)
        scale(out, x, None)
    stream.synchronize()
    assert torch.equal(out, expected(x, None))


@needs_gpu
def test_tensor_on_the_cpu_is_refused_after_one_on_the_gpu(nothing_kept):
    x = normal(256, dtype=torch.float32, device='cuda')
    out = scale(torch.empty_like(x), x, None)
    with pytest.raises(ValueError, match='cpu tensor'):
        scale(out, x.cpu(), None)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_kept_kernels_of_two_gpus(nothing_kept):
    for _ in range(3):
        for index in range(2):
            x = normal(256, dtype=torch.float32, device=f'cuda:{index}')
            out = scale(torch.empty_like(x), x, None)
            assert torch.equal(out, expected(x, None))
    assert len(nothing_kept) == (2 if launch_module._KNOWN else 0)
    assert torch.cuda.current_device() == 0
