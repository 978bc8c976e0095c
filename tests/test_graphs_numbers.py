"""What replays compute, against the same steps without graphs."""

import copy

import pytest
import torch

from evmamba_mm import EfficientVMamba
from evmamba_mm.deploy import fuse
from evmamba_mm.graphs import graph_inference, graph_training

from .graph_fixtures import NEEDS_GPU, count_replays, exact_convolutions

pytestmark = NEEDS_GPU


@pytest.fixture(autouse=True)
def same_convolutions():
    with exact_convolutions():
        yield


def close(actual, expected, dtype=None):
    tolerance = (
        dict(rtol=1e-4, atol=1e-6)
        if dtype is None
        else dict(rtol=2e-2, atol=1e-4)
    )
    torch.testing.assert_close(actual, expected, **tolerance)


def pair(**settings):
    torch.manual_seed(0)
    eager = EfficientVMamba('atto', **settings).cuda()
    return eager, copy.deepcopy(eager)


@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
def test_steps_equal_eager_ones(dtype, monkeypatch):
    eager, graphed = pair()
    images = torch.randn(3, 2, 3, 64, 64, device='cuda')
    graph_training(graphed, images[0], dtype)
    replays = count_replays(monkeypatch)
    steps = {}
    for name, model in (('eager', eager), ('graphed', graphed)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for image in images:
            optimizer.zero_grad()
            with torch.autocast(
                'cuda', dtype=dtype, enabled=dtype is not None
            ):
                loss = model(image)[-1].float().square().mean()
            loss.backward()
            optimizer.step()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        steps[name] = loss.item(), state
    assert len(replays) == 6
    close(steps['graphed'][0], steps['eager'][0], dtype)
    close(steps['graphed'][1], steps['eager'][1], dtype)


def test_gradients_accumulate_and_last():
    eager, graphed = pair(out_indices=(0, 1, 2, 3))
    images = torch.randn(3, 2, 3, 64, 64, device='cuda')
    graph_training(graphed, images[0])
    features = []
    for model in (eager, graphed):
        kept = []
        for image in images:
            outputs = model(image)
            sum(output.square().mean() for output in outputs).backward()
            kept.append([output.detach() for output in outputs])
        features.append(kept)
    close(features[1], features[0])
    for one, other in zip(
        graphed.parameters(), eager.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_still_alive_does_not_stop_a_capture():
    model, _ = pair()
    image = torch.randn(2, 3, 64, 64, device='cuda')
    loss = model(image)[-1].square().mean()
    loss.backward()
    graph_training(model, image)
    model(image)[-1].square().mean().backward()
    assert loss.grad_fn is not None


def test_drop_path_differs_from_replay_to_replay():
    model, _ = pair(drop_path_rate=0.9)
    image = torch.randn(2, 3, 64, 64, device='cuda')
    graph_training(model, image)
    results = [model(image)[-1].detach() for _ in range(4)]
    assert any(not torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize('frozen_stages', [1, 4])
def test_frozen_stages_stay(frozen_stages, monkeypatch):
    eager, graphed = pair(frozen_stages=frozen_stages, norm_eval=True)
    eager.train()
    image = torch.randn(2, 3, 64, 64, device='cuda')
    graph_training(graphed.train(), image)
    replays = count_replays(monkeypatch)
    outputs = eager(image)[-1], graphed(image)[-1]
    assert len(replays) == 1
    close(outputs[1], outputs[0])
    if frozen_stages == 1:
        for output in outputs:
            output.square().mean().backward()
        assert graphed.patch_embed.conv.weight.grad is None
        for one, other in zip(
            graphed.stages[-1].parameters(),
            eager.stages[-1].parameters(),
            strict=True,
        ):
            torch.testing.assert_close(
                one.grad, other.grad, rtol=1e-3, atol=1e-5
            )


def test_other_shapes_and_evaluation_run_as_before():
    eager, graphed = pair()
    graph_training(graphed, torch.randn(2, 3, 64, 64, device='cuda'))
    image = torch.randn(1, 3, 96, 32, device='cuda')
    close(graphed(image), eager(image))
    close(graphed.eval()(image), eager.eval()(image))


def test_inference_follows_the_image_and_the_weights():
    eager, graphed = pair()
    eager.eval()
    images = torch.randn(2, 2, 3, 64, 64, device='cuda')
    graph_inference(graphed.eval(), images[0])
    with torch.no_grad():
        for image in images:
            close(graphed(image), eager(image))
        for model in (eager, graphed):
            model.patch_embed.conv.weight.mul_(2)
        close(graphed(images[0]), eager(images[0]))
        other = images[:, 0, :, :32]
        close(graphed(other), eager(other))
    graphed(images[0])[-1].sum().backward()
    assert graphed.patch_embed.conv.weight.grad is not None


def test_a_fused_copy_of_a_graphed_model_has_its_own_weights():
    eager, graphed = pair()
    image = torch.randn(2, 3, 64, 64, device='cuda')
    graph_inference(graphed.eval(), image)
    fused = fuse(graphed)
    with torch.no_grad():
        before = fused(image)[-1].clone()
        graphed.patch_embed.conv.weight.mul_(2)
        torch.testing.assert_close(fused(image)[-1], before)
        torch.testing.assert_close(
            before, eager.eval()(image)[-1], rtol=1e-3, atol=1e-4
        )
