"""Graphs of modules whose inputs have gradients, as necks and heads."""

import copy

import pytest
import torch
from torch import nn

from evmamba_mm.graphs import graph_training, training

from . import graph_fixtures

device, replays = graph_fixtures.device, graph_fixtures.replays


class Neck(nn.Module):
    """Two maps of two inputs; the third input and its weight are unused."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, maps):
        fine, coarse = (
            conv(x) for conv, x in zip(self.convs, maps[:2], strict=False)
        )
        fine = fine + nn.functional.interpolate(coarse, scale_factor=2.0)
        return [fine, coarse]


@pytest.fixture
def neck(device):
    torch.manual_seed(0)
    return Neck().to(device)


def maps(device, size=8, *, grads=(True, True, True)):
    sizes = (size, size // 2, size // 4)
    return tuple(
        torch.randn(2, 4, s, s, device=device).requires_grad_(wanted)
        for s, wanted in zip(sizes, grads, strict=True)
    )


def loss_of(outputs):
    return sum(output.sum() for output in outputs)


def test_gradients_reach_the_inputs(neck, device, replays, monkeypatch):
    def ones(outputs):
        return [torch.ones_like(o) for o in outputs if o.requires_grad]

    # What a made-up graph keeps are then the gradients of a sum.
    monkeypatch.setattr(training, '_zeros', ones)
    plain = copy.deepcopy(neck)
    inputs = maps(device)
    graph_training(neck, inputs)
    found = []
    for model in (plain, neck):
        own = tuple(x.detach().clone().requires_grad_() for x in inputs)
        outputs = model(own)
        loss_of(outputs).backward()
        weights = [p.grad for p in model.parameters()]
        found.append((outputs, [x.grad for x in own], weights))
    assert len(replays) == 2
    torch.testing.assert_close(found[1][0], found[0][0])
    for one, other in zip(found[1][1], found[0][1], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    assert found[1][1][2] is None
    assert [g is None for g in found[1][2]] == [False] * 4 + [True] * 2
    torch.testing.assert_close(found[1][2][:4], found[0][2][:4])


def test_an_input_without_gradient_is_another_call(neck, device, replays):
    graph_training(neck, maps(device))
    frozen = maps(device, grads=(False, True, True))
    loss_of(neck(frozen)).backward()
    assert not replays
    assert frozen[0].grad is None
    graph_training(neck, frozen)
    loss_of(neck(frozen)).backward()
    assert len(replays) == 2
    assert frozen[0].grad is None
    assert frozen[1].grad is not None


def test_a_list_is_replayed_as_a_tuple_is(neck, device, replays):
    inputs = maps(device)
    graph_training(neck, inputs)
    loss_of(neck(list(inputs))).backward()
    assert len(replays) == 2


def test_what_is_no_tensor_runs_as_before(device, replays):
    class Second(nn.Module):
        def forward(self, inputs):
            return inputs[1]

    second = Second()
    graph_training(second, maps(device)[:2])
    assert second(('a', 3)) == 3
    assert not replays
    with pytest.raises(ValueError, match='or a sequence of tensors, got dict'):
        graph_training(second, dict())
    with pytest.raises(ValueError, match='or a sequence of tensors, got list'):
        graph_training(second, [])


def test_a_backbone_and_a_neck_in_a_row(neck, device, replays):
    torch.manual_seed(0)
    backbone = nn.Conv2d(3, 4, 1).to(device)
    plain = copy.deepcopy(nn.ModuleList([backbone, neck]))
    image = torch.randn(2, 3, 8, 8, device=device)

    def step(first, second):
        fine = first(image)
        coarse = fine[..., ::2, ::2]
        loss_of(second((fine, coarse, coarse))).backward()

    graph_training(backbone, image)
    example = backbone(image).detach()
    coarse = example[..., ::2, ::2]
    graph_training(
        neck, [x.requires_grad_() for x in (example, coarse, coarse.clone())]
    )
    replays.clear()
    step(backbone, neck)
    assert len(replays) == 4
    if device.type != 'cuda':
        return
    step(*plain)
    for one, other in zip(
        [*backbone.parameters(), *neck.convs[:2].parameters()],
        [*plain[0].parameters(), *plain[1].convs[:2].parameters()],
        strict=True,
    ):
        torch.testing.assert_close(one.grad, other.grad)


def test_shapes_take_turns_with_the_memory(
    neck,
    device,
    replays,
    package_log,
):
    plain = copy.deepcopy(neck)
    both = maps(device), maps(device, 16)
    for inputs in both:
        graph_training(neck, inputs)
    total = loss_of(neck(both[0])) + loss_of(neck(both[1]))
    assert len(replays) == 1
    assert 'second forward before the backward' in package_log.text
    total.backward()
    assert len(replays) == 2
    for inputs in both * 2:
        loss_of(neck(inputs)).backward()
    assert len(replays) == 10
    if device.type == 'cuda':
        for inputs in (*both, *both * 2):
            loss_of(plain(inputs)).backward()
        for one, other in zip(
            neck.convs[:2].parameters(),
            plain.convs[:2].parameters(),
            strict=True,
        ):
            torch.testing.assert_close(one.grad, other.grad)


def test_shapes_share_their_memory(device):
    if device.type != 'cuda':
        pytest.skip('memory is that of a GPU')
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8)))
    net.to(device)
    # Large beside a segment of the allocator.
    images = [torch.randn(64, 8, s, 128, device=device) for s in (128, 120)]
    reserved = []
    for image in images:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph_training(net, image)
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved() - before)
    assert reserved[1] < 0.7 * reserved[0]
