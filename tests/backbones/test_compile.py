"""Backbones under torch.compile, which has to see them as one graph."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from evmamba_mm.backbones import EfficientVMamba, Vim, VMamba

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
ARCH = dict(channels=(8, 16), depths=(1, 2))
MODELS = {
    'evmamba': lambda: EfficientVMamba(
        ARCH,
        out_indices=(0, 1),
        block_types=('evss', 'inverted_residual'),
    ),
    'vmamba': lambda: VMamba(ARCH, out_indices=(0, 1)),
    'vim': lambda: Vim(dict(channels=16, depth=2), img_size=64),
}


@pytest.fixture(autouse=True)
def a_new_compiler():
    torch._dynamo.reset()


def compiled(model, backend='aot_eager'):
    return torch.compile(model, fullgraph=True, backend=backend)


def train_step(model, run, image):
    """Outputs, gradients and running statistics of one step."""
    torch.manual_seed(2)
    outputs = run(image)
    sum(y.square().mean() for y in outputs).backward()
    return {
        **{f'output{i}': y.detach() for i, y in enumerate(outputs)},
        **{f'{n}.grad': p.grad for n, p in model.named_parameters()},
        **dict(model.named_buffers()),
    }


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name],
            value,
            rtol=1e-3,
            atol=1e-4,
            msg=lambda m, n=name: f'{n}: {m}',
        )


@pytest.mark.parametrize('gradients', [False, True], ids=['no-grad', 'grad'])
@pytest.mark.parametrize('name', MODELS)
def test_compiles_as_one_graph(name, gradients):
    torch.manual_seed(0)
    model = MODELS[name]().to(DEVICE).eval()
    image = torch.randn(1, 3, 64, 96, device=DEVICE)
    run = compiled(model)
    with torch.set_grad_enabled(gradients):
        for value, expected in zip(run(image), model(image), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('with_cp', [False, True], ids=['plain', 'with-cp'])
@pytest.mark.parametrize('name', MODELS)
def test_trains_as_eager_does(name, with_cp):
    torch.manual_seed(0)
    eager = MODELS[name]().to(DEVICE).train()
    model = copy.deepcopy(eager)
    model.with_cp = with_cp
    image = torch.randn(2, 3, 64, 64, device=DEVICE)
    expected = train_step(eager, eager, image)
    counter = CompileCounterWithBackend('aot_eager')
    run = torch.compile(model, fullgraph=True, backend=counter)
    assert_close(train_step(model, run, image), expected)
    assert counter.frame_count == 1


def test_inductor_recomputes_as_eager_does():
    torch.manual_seed(0)
    eager = EfficientVMamba(
        arch=dict(channels=(8,), depths=(1,)),
        block_types=('inverted_residual',),
    ).to(DEVICE)
    model = copy.deepcopy(eager)
    model.with_cp = True
    image = torch.randn(2, 3, 32, 32, device=DEVICE)
    expected = train_step(eager, eager, image)
    run = compiled(model, backend='inductor')
    assert_close(train_step(model, run, image), expected)


def test_a_hook_inside_a_block_is_traced():
    torch.manual_seed(0)
    model = MODELS['evmamba']().to(DEVICE).eval()
    image = torch.randn(1, 3, 64, 64, device=DEVICE)
    before = model(image)
    model.stages[0][0].mixer.out_norm.register_forward_hook(
        lambda *arguments: 2 * arguments[-1]
    )
    expected = model(image)
    assert not torch.allclose(expected[0], before[0])
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(model)(image), expected, rtol=1e-4, atol=1e-5
        )


def test_what_changes_after_the_first_call_takes_effect():
    model = EfficientVMamba('atto').eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        run = torch.compile(model, backend='aot_eager')
        (before,) = run(image)
        stage = model.stages[0]
        stage.forward = lambda x: torch.roll(
            torch.nn.Sequential.forward(stage, x), 1, 1
        )
        (expected,) = model(image)
        (actual,) = run(image)
    assert not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
