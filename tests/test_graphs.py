import copy

import pytest
import torch

from evmamba_mm import EfficientVMamba
from evmamba_mm.graphs import graph_inference, graph_training

NEEDS_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='CUDA graphs need a GPU'
)


def test_a_cpu_image_is_refused():
    with pytest.raises(ValueError, match='image must be on a CUDA device'):
        graph_training(torch.nn.Identity(), torch.zeros(1))


@NEEDS_GPU
def test_a_module_in_evaluation_is_refused():
    with pytest.raises(ValueError, match='training mode'):
        graph_training(torch.nn.Identity().eval(), torch.zeros(1).cuda())


@NEEDS_GPU
@pytest.mark.parametrize('dtype', [None, torch.bfloat16], ids=str)
def test_steps_equal_eager_ones(dtype):
    torch.manual_seed(0)
    eager = EfficientVMamba('atto').cuda().train()
    graphed = copy.deepcopy(eager)
    images = torch.randn(3, 2, 3, 64, 64, device='cuda')
    graph_training(graphed, images[0], dtype)
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
    tolerance = (
        dict(rtol=1e-4, atol=1e-6)
        if dtype is None
        else dict(rtol=2e-2, atol=1e-4)
    )
    torch.testing.assert_close(
        steps['graphed'][0], steps['eager'][0], **tolerance
    )
    torch.testing.assert_close(
        steps['graphed'][1], steps['eager'][1], **tolerance
    )


@NEEDS_GPU
def test_other_shapes_and_evaluation_run_as_before():
    torch.manual_seed(0)
    eager = EfficientVMamba('atto').cuda().train()
    graphed = copy.deepcopy(eager)
    graph_training(graphed, torch.randn(2, 3, 64, 64, device='cuda'))
    image = torch.randn(1, 3, 96, 32, device='cuda')
    torch.testing.assert_close(graphed(image), eager(image))
    torch.testing.assert_close(graphed.eval()(image), eager.eval()(image))


@NEEDS_GPU
def test_inference_follows_the_image_and_the_weights():
    torch.manual_seed(0)
    eager = EfficientVMamba('atto').cuda().eval()
    graphed = copy.deepcopy(eager)
    images = torch.randn(2, 2, 3, 64, 64, device='cuda')
    graph_inference(graphed, images[0])
    with torch.no_grad():
        for image in images:
            torch.testing.assert_close(graphed(image), eager(image))
        for model in (eager, graphed):
            model.patch_embed.conv.weight.mul_(2)
        torch.testing.assert_close(graphed(images[0]), eager(images[0]))
        other = images[:, 0, :, :32]
        torch.testing.assert_close(graphed(other), eager(other))
    graphed(images[0])[-1].sum().backward()
    assert graphed.patch_embed.conv.weight.grad is not None


@NEEDS_GPU
def test_inference_refuses_a_module_in_training():
    with pytest.raises(ValueError, match='evaluation mode'):
        graph_inference(torch.nn.Identity(), torch.zeros(1).cuda())
