"""Too little memory for a capture, and fp16 that overflows."""

import pytest
import torch
from torch import nn

import evmamba_mm.hooks.graph_hook as graph_hook
from evmamba_mm import CUDAGraphHook, EfficientVMamba
from evmamba_mm.graphs import graph_training, remove_graphs

from ..graph_fixtures import NEEDS_GPU, make_up_graphs

STEPS = 16
DEVICES = ['cpu', pytest.param('cuda', marks=NEEDS_GPU)]


class Runner:
    """As much of a runner as the hook looks at."""

    def __init__(self, part):
        self.model = nn.ModuleDict(dict(backbone=part))
        self.cfg = {}


def step(hook, runner, image):
    hook.before_train_iter(runner, 0)
    return runner.model['backbone'](image)


@pytest.mark.parametrize('strict', [True, False])
def test_a_capture_without_memory_says_what_to_lower(
    strict,
    monkeypatch,
    package_log,
):
    make_up_graphs(monkeypatch)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: None)

    def no_memory(*arguments):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')

    monkeypatch.setattr(graph_hook, 'graph_training', no_memory)
    part = nn.Conv2d(3, 4, 1)
    runner = Runner(part)
    hook = CUDAGraphHook(repeats=1, strict=strict)
    hook.before_train(runner)
    image = torch.rand(2, 3, 4, 4)
    step(hook, runner, image)
    message = 'lower the batch size of the train_dataloader'
    if strict:
        with pytest.raises(RuntimeError, match=message):
            step(hook, runner, image)
        return
    for _ in range(3):
        step(hook, runner, image).sum().backward()
    assert package_log.text.count(message) == 1
    assert not part._forward_pre_hooks


@NEEDS_GPU
@pytest.mark.parametrize('strict', [True, False])
def test_a_full_gpu_trains_without_graphs(strict, package_log):
    part = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(32, 32, 1), nn.GELU()) for _ in range(8))
    ).cuda()
    runner = Runner(part)
    hook = CUDAGraphHook(repeats=1, strict=strict)
    hook.before_train(runner)
    image = torch.rand(8, 32, 256, 256, device='cuda')
    step(hook, runner, image).sum().backward()
    torch.cuda.empty_cache()
    # All but what one more image takes; a step takes about 20 of them.
    free = torch.cuda.mem_get_info()[0] - 2 * image.nbytes
    ballast = torch.empty(free, dtype=torch.uint8, device='cuda')
    if strict:
        with pytest.raises(RuntimeError, match='lower the batch size'):
            hook.before_train_iter(runner, 0)
    else:
        hook.before_train_iter(runner, 0)
        assert package_log.text.count('too little memory to capture') == 1
    del ballast
    torch.cuda.empty_cache()
    expected = nn.Sequential.forward(part, image)
    torch.testing.assert_close(part(image), expected)
    part(image).sum().backward()
    torch.cuda.synchronize()


@pytest.mark.parametrize('graphs', [False, True], ids=['eager', 'graphs'])
@pytest.mark.parametrize('device', DEVICES)
def test_fp16_that_overflows_skips_steps_until_it_fits(device, graphs):
    if graphs and device == 'cpu':
        pytest.skip('CUDA graphs need a GPU')
    torch.manual_seed(0)
    model = EfficientVMamba('atto').to(device).train()
    image = torch.randn(2, 3, 32, 32, device=device)
    if graphs:
        graph_training(model, image, torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    # Gradients times this overflow fp16 at first.
    scaler = torch.amp.GradScaler(device, init_scale=2.0**24)
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    skipped = 0
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16):
            loss = model(image)[0].float().square().mean()
        before = scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        assert loss.isfinite()
    remove_graphs(model)
    assert 0 < skipped < STEPS
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    assert any(
        not torch.equal(p, start[k]) for k, p in model.named_parameters()
    )
