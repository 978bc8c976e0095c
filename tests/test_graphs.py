import copy
import io

import pytest
import torch
from torch import nn

from evmamba_mm import EfficientVMamba
from evmamba_mm.graphs import (
    check_training,
    graph_inference,
    graph_training,
    remove_graphs,
    training,
)
from evmamba_mm.graphs.state import ModuleState

from . import graph_fixtures

device, replays = graph_fixtures.device, graph_fixtures.replays


@pytest.fixture
def net(device):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    ).to(device)


@pytest.fixture
def image(device):
    return torch.randn(2, 3, 8, 8, device=device)


def grown(net, factor):
    """A copy of a net with other weights."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[-1].weight.mul_(factor)
    return other


def test_a_cpu_image_is_refused():
    with pytest.raises(ValueError, match='inputs must be on a CUDA device'):
        graph_training(nn.Identity(), torch.zeros(1))
    with pytest.raises(ValueError, match='image must be on a CUDA device'):
        graph_inference(nn.Identity(), torch.zeros(1))


def test_the_wrong_mode_is_refused(net, image):
    with pytest.raises(ValueError, match='training mode'):
        graph_training(net.eval(), image)
    with pytest.raises(ValueError, match='evaluation mode'):
        graph_inference(net.train(), image)
    assert 'forward' not in net.__dict__


def test_what_cannot_be_captured_is_refused():
    with pytest.raises(ValueError, match=r'SyncBatchNorm, got one as 1'):
        check_training(nn.Sequential(nn.ReLU(), nn.SyncBatchNorm(4)))
    with pytest.raises(ValueError, match='set with_cp=False'):
        check_training(EfficientVMamba('atto', with_cp=True))
    hooked = nn.Sequential(nn.Sequential(nn.ReLU()))
    hooked.register_forward_hook(print)
    check_training(hooked)
    hooked[0][0].register_forward_pre_hook(print)
    with pytest.raises(ValueError, match='got one on 0.0'):
        check_training(hooked)


def test_a_training_call_is_replayed_with_its_backward(net, image, replays):
    plain = copy.deepcopy(net)
    graph_training(net, image)
    assert not replays
    torch.testing.assert_close(
        dict(net.named_buffers()), dict(plain.named_buffers())
    )
    output = net(image)
    assert len(replays) == 1
    output.sum().backward()
    assert len(replays) == 2
    torch.testing.assert_close(output, plain(image))
    assert all(p.grad is not None for p in net.parameters())


def test_gradients_reach_their_parameters_and_add_up(
    net, image, replays, monkeypatch
):
    def ones(outputs):
        return [torch.ones_like(o) for o in outputs if o.requires_grad]

    # What a made-up graph keeps are then the gradients of a sum.
    monkeypatch.setattr(training, '_zeros', ones)
    plain = copy.deepcopy(net)
    graph_training(net, image)
    for model in (net, plain):
        model(image).sum().backward()
        first = [p.grad for p in model.parameters()]
        kept = [gradient.clone() for gradient in first]
        model(image).sum().backward()
        torch.testing.assert_close(first, [2 * gradient for gradient in kept])
    assert len(replays) == 4
    torch.testing.assert_close(
        [p.grad for p in net.parameters()],
        [p.grad for p in plain.parameters()],
    )


def test_an_evaluation_call_is_replayed(net, image, replays):
    plain = copy.deepcopy(net).eval()
    graph_inference(net.eval(), image)
    with torch.no_grad():
        torch.testing.assert_close(net(image), plain(image))
    assert len(replays) == 1
    net(image).sum().backward()
    assert len(replays) == 1
    assert net[0].weight.grad is not None


def freeze(net):
    net[0].requires_grad_(False)
    return lambda: net[0].requires_grad_(True)


def norm_in_evaluation(net):
    net[1].eval()
    return net[1].train


def hook(net):
    return net[2].register_forward_hook(lambda *args: None).remove


@pytest.mark.parametrize('change', [freeze, norm_in_evaluation, hook])
def test_what_is_set_otherwise_runs_as_before(
    change,
    net,
    image,
    replays,
    package_log,
):
    plain = copy.deepcopy(net)
    graph_training(net, image)
    back = change(net)
    change(plain)
    for _ in range(2):
        torch.testing.assert_close(net(image), plain(image))
    assert not replays
    assert package_log.text.count('is not replayed: hooks, training') == 1
    back()
    net(image)
    assert len(replays) == 1


def test_a_hook_on_all_modules_runs(net, image, replays):
    graph_training(net, image)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: seen.append(module)
    )
    try:
        net(image)
    finally:
        hook.remove()
    assert seen == [*net, net] and not replays
    net(image)
    assert len(replays) == 1


def test_a_state_under_hooks_on_all_modules_is_another():
    register = nn.modules.module.register_module_forward_hook
    for _ in range(2):
        hook = register(lambda *args: None)
        state = ModuleState(nn.ReLU())
        assert not state.is_set_otherwise()
        hook.remove()
        assert state.is_set_otherwise()


def test_no_graph_is_made_under_a_hook_on_all_modules():
    hook = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        with pytest.raises(ValueError, match='registered for all modules'):
            check_training(nn.ReLU())
    finally:
        hook.remove()


def move(net):
    net[0].weight.data = net[0].weight.data.clone()


def replace_parameter(net):
    net[0].weight = nn.Parameter(net[0].weight.data)


def replace_buffer(net):
    net[1].running_mean = net[1].running_mean.clone()


def replace_submodule(net):
    net[2] = nn.ReLU()


@pytest.mark.parametrize(
    'change', [move, replace_parameter, replace_buffer, replace_submodule]
)
def test_what_has_moved_gives_its_graph_up(
    change,
    net,
    image,
    replays,
    package_log,
):
    plain = copy.deepcopy(net)
    graph_training(net, image)
    change(net)
    for _ in range(2):
        output = net(image)
        torch.testing.assert_close(output, plain(image))
    output.sum().backward()
    assert net[0].weight.grad is not None
    assert not replays
    assert package_log.text.count('is dropped') == 1
    graph_training(net, image)
    net(image)
    assert len(replays) == 1


def test_other_calls_run_as_before(net, image, replays):
    plain = copy.deepcopy(net)
    graph_training(net, image)
    for other in (image[:1], image[..., 1:], image.clone().requires_grad_()):
        torch.testing.assert_close(net(other), plain(other))
    with torch.no_grad():
        torch.testing.assert_close(net(image), plain(image))
    for one in (net, plain):
        one.double()(image.double())
    torch.testing.assert_close(
        net.float().eval()(image),
        plain.float().eval()(image),
        rtol=1e-4,
        atol=1e-5,
    )
    assert not replays


def test_other_autocast_runs_as_before(net, image, replays):
    if image.device.type != 'cuda':
        pytest.skip('autocast of CUDA needs a GPU')
    graph_training(net, image, torch.bfloat16)
    assert net(image).dtype == torch.float32
    with torch.autocast('cuda', torch.float16):
        assert net(image).dtype == torch.float16
    assert not replays
    with torch.autocast('cuda', torch.bfloat16):
        assert net(image).dtype == torch.bfloat16
    assert len(replays) == 1


def test_several_shapes_have_a_graph_each(net, image, replays):
    plain = copy.deepcopy(net)
    images = image, image[..., :6].contiguous()
    for one in images:
        graph_training(net, one)
    for one in images:
        torch.testing.assert_close(net(one), plain(one))
    assert len({id(graph) for graph in replays}) == 2
    graph_inference(net.eval(), image)
    with torch.no_grad():
        net(image)
    assert len(replays) == 3


def test_a_call_before_the_last_backward_runs_as_before(
    net,
    image,
    replays,
    package_log,
):
    plain = copy.deepcopy(net)
    graph_training(net, image)
    total = net(image).sum() + net(image).sum()
    assert len(replays) == 1
    assert 'second forward before the backward' in package_log.text
    total.backward()
    assert len(replays) == 2
    if image.device.type == 'cuda':
        (plain(image).sum() + plain(image).sum()).backward()
        for one, other in zip(
            net.parameters(), plain.parameters(), strict=True
        ):
            torch.testing.assert_close(one.grad, other.grad)


def test_a_call_whose_result_was_dropped_leaves_the_graph_free(
    net, image, replays
):
    graph_training(net, image)
    for _ in range(3):
        net(image)
    assert len(replays) == 3


def test_a_second_backward_is_refused(net, image, replays):
    graph_training(net, image)
    loss = net(image).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='activations of this replay'):
        loss.backward()


def test_a_copy_has_no_graph_and_its_own_weights(net, image, replays):
    plain = grown(net, 2)
    graph_training(net, image)
    other = grown(net, 2)
    again = copy.deepcopy(other)
    torch.testing.assert_close(other(image), plain(image))
    assert other.forward.__self__ is other
    assert again.forward.__self__ is again
    assert not replays
    remove_graphs(other)
    graph_training(other, image)
    other(image)
    assert len(replays) == 1


def test_a_pickle_has_no_graph(net, image, replays):
    plain = copy.deepcopy(net)
    graph_training(net, image)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(image), plain(image))
    assert loaded.forward.__self__ is loaded
    assert not replays


def test_removed_graphs_leave_the_plain_forward(net, image, replays):
    plain = copy.deepcopy(net)
    remove_graphs(net)
    graph_training(net, image)
    remove_graphs(net)
    assert 'forward' not in net.__dict__
    torch.testing.assert_close(net(image), plain(image))
    assert not replays
    own = net.forward
    net.forward = lambda image: own(image)
    mine = net.forward
    graph_training(net, image)
    remove_graphs(net)
    assert net.forward is mine


def test_outputs_without_gradient_and_unused_parameters(image, replays):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.unused = nn.Parameter(torch.ones(()))

        def forward(self, image):
            return dict(a=self.scale * image, b=(image > 0,))

    odd = Odd().to(image.device)
    graph_training(odd, image)
    output = odd(image)
    torch.testing.assert_close(output, dict(a=image, b=(image > 0,)))
    assert not output['b'][0].requires_grad
    output['a'].sum().backward()
    assert len(replays) == 2
    assert odd.unused.grad is None
    assert odd.scale.grad is not None


def test_a_frozen_module_is_replayed(net, image, replays):
    graph_training(net.requires_grad_(False), image)
    for _ in range(2):
        assert not net(image).requires_grad
    assert len(replays) == 2


def test_an_output_that_is_no_tensor_is_refused(image):
    class Counting(nn.Module):
        def forward(self, image):
            return image, len(image)

    with pytest.raises(ValueError, match='only tensors'):
        graph_training(Counting(), image)
