"""The switch, and who looks on."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import evmamba_mm.fast.run as fast_run
from evmamba_mm import EfficientVMamba
from evmamba_mm.fast import blocks_to_run, check_fused, run_block
from evmamba_mm.layers import LayerNorm2d

from .changes import (
    DEVICE,
    Tagged,
    assert_same,
    built,
    by_block,
    input_of,
    model,
    seen,
)

VARIABLE = 'EVMAMBA_FUSED'


@pytest.fixture
def stem():
    return built('stem')


def no_kernel(block, x, fused='auto'):
    raise AssertionError('a kernel ran')


@pytest.mark.parametrize('fused', ['auto', True, False])
def test_legal_values_of_fused(fused):
    assert check_fused(fused) == fused
    assert EfficientVMamba('atto', fused=fused).fused == fused


@pytest.mark.parametrize('fused', ['on', 'Auto', '', None, 0, 1])
def test_illegal_values_of_fused(fused):
    with pytest.raises(ValueError, match="fused must be 'auto', True or"):
        check_fused(fused)
    with pytest.raises(ValueError, match='fused must be'):
        EfficientVMamba('atto', fused=fused)


@pytest.mark.parametrize(
    'word,count',
    [('auto', 1), ('', 1), ('AUTO', 1), ('true', 1), ('false', 0)],
)
def test_environment_variable(kernels, stem, monkeypatch, word, count):
    monkeypatch.setenv(VARIABLE, word)
    run_block(stem, input_of('stem'))
    assert len(kernels) == count


@pytest.mark.parametrize('fused,count', [(True, 1), (False, 0)])
@pytest.mark.parametrize('word', ['true', 'false', 'auto'])
def test_an_argument_outweighs_the_variable(
    kernels, stem, monkeypatch, word, fused, count
):
    monkeypatch.setenv(VARIABLE, word)
    run_block(stem, input_of('stem'), fused)
    assert len(kernels) == count


def test_an_illegal_environment_variable(stem, monkeypatch):
    monkeypatch.setenv(VARIABLE, 'yes')
    with pytest.raises(ValueError, match=f'{VARIABLE} must be one of auto'):
        run_block(stem, input_of('stem'))


def test_a_variable_of_true_refuses_a_changed_block(
    kernels, stem, monkeypatch
):
    monkeypatch.setenv(VARIABLE, 'true')
    stem.conv.stride = (2, 2)
    with pytest.raises(ValueError, match=r'conv has stride=\(2, 2\)'):
        run_block(stem, input_of('stem'))


def test_fused_names_the_block_and_the_module(kernels):
    block = built('evss')
    block.se.act = nn.ReLU()
    message = (
        'fused=True or EVMAMBA_FUSED=true, but the fused kernels cannot run '
        "EVSSBlock: se.act is a ReLU, not a GELU; use 'auto' or False"
    )
    with pytest.raises(ValueError) as error:
        run_block(block, input_of('evss'), True)
    assert str(error.value) == message


def test_fused_of_a_block_without_kernels(kernels):
    with pytest.raises(ValueError, match='no kernels for a Conv2d'):
        run_block(nn.Conv2d(8, 8, 1), input_of('evss'), True)


def test_fused_on_a_cpu_without_the_interpreter(stem, monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(ValueError, match='the input is on cpu, and the'):
        run_block(stem.cpu(), input_of('stem').cpu(), True)


def test_auto_on_a_cpu_does_not_take_the_interpreter(stem, monkeypatch):
    monkeypatch.setattr(fast_run, '_blocks', no_kernel)
    run_block(stem.cpu(), input_of('stem').cpu())


def test_fused_without_triton(stem, monkeypatch):
    monkeypatch.setattr(fast_run, 'triton_installed', lambda: False)
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    x = input_of('stem')
    with pytest.raises(ValueError, match='pip install triton'):
        run_block(stem, x, True)
    torch.testing.assert_close(run_block(stem, x), stem(x))


def test_a_default_device_is_no_observer(kernels, stem):
    x = input_of('stem')
    with torch.device(DEVICE):
        run_block(stem, x)
    assert len(kernels) == 1


def counted(block, x):
    with FlopCounterMode(display=False) as counter:
        block(x)
    return counter.get_total_flops()


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def named(block, x):
    with Names() as mode:
        block(x)
    return mode.names


class Calls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        y = func(*args, **(kwargs or {}))
        return 2 * y if func is torch.nn.functional.layer_norm else y


def by_function_mode(block, x):
    with Calls() as mode:
        block(x)
    return [name for name in mode.names if name != '__get__']


def by_jit(block, x):
    with torch.no_grad():
        return torch.jit.trace(block, x, check_trace=False)(x)


def by_fx(block, x):
    with torch.no_grad():
        return make_fx(block)(x)(x)


def by_vmap(block, x):
    with torch.no_grad():
        return torch.func.vmap(block)(torch.stack([x, 2 * x]))


def by_grad(block, x):
    return torch.func.grad(lambda x: block(x).square().sum())(x)


def by_jvp(block, x):
    tangent = torch.ones_like(x)
    return torch.stack(torch.func.jvp(block, (x,), (tangent,)))


def by_dual_numbers(block, x):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        return torch.stack(forward_ad.unpack_dual(block(dual)))


class Runner(nn.Module):
    def __init__(self, block, fused):
        super().__init__()
        self.block = block
        self.fused = fused

    def forward(self, x):
        return run_block(self.block, x, self.fused)


OBSERVERS = {
    'flop counter': counted,
    'dispatch mode': named,
    'function mode': by_function_mode,
    'jit.trace': by_jit,
    'make_fx': by_fx,
    'vmap': by_vmap,
    'func.grad': by_grad,
    'func.jvp': by_jvp,
    'forward_ad': by_dual_numbers,
}


@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore:There is a performance drop')
@pytest.mark.parametrize('observer', OBSERVERS)
@pytest.mark.parametrize('kind', ['evss', 'inverted', 'stem', 'merging'])
def test_observers_see_plain_torch(kernels, kind, observer):
    observe = OBSERVERS[observer]
    block, x = built(kind).eval(), input_of(kind)
    if observer == 'vmap' and kind == 'stem':
        x = x[:1]
    # Under vmap cuDNN's BatchNorm refuses channels-last maps.
    with torch.backends.cudnn.flags(enabled=observer != 'vmap'):
        expected = observe(Runner(block, False), x)
        actual = observe(Runner(block, 'auto'), x)
    assert len(kernels) == 0
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected)
    else:
        assert expected
        assert actual == expected
    run_block(block, x)
    assert len(kernels) == 1


@pytest.mark.parametrize(
    'dtype,why', [(torch.float64, 'torch.float64'), (torch.int64, 'int64')]
)
def test_a_dtype_without_kernels(kernels, dtype, why):
    norm = built('norm').to(torch.float64)
    x = input_of('norm').to(dtype)
    with pytest.raises(ValueError, match=why):
        run_block(norm, x, True)
    if dtype == torch.float64:
        torch.testing.assert_close(run_block(norm, x), norm(x))
    assert len(kernels) == 0


@pytest.mark.parametrize('kind', ['evss', 'inverted', 'stem', 'merging'])
def test_a_block_in_fp64(kernels, kind):
    x = input_of(kind).double()
    first, second = (built(kind).double() for _ in range(2))
    expected = seen(first, x, by_block(False))
    assert_same(seen(second, x, by_block('auto')), expected)
    assert len(kernels) == 0


@pytest.mark.parametrize('kind', ['evss', 'inverted', 'stem', 'norm'])
def test_an_empty_batch(kernels, kind):
    block, x = built(kind).eval(), input_of(kind)[:0]
    with torch.no_grad():
        y = run_block(block, x)
        assert y.shape == block(x).shape
        with pytest.raises(ValueError, match='the input is empty'):
            run_block(block, x, True)
    assert len(kernels) == 0


def test_an_input_of_a_tensor_subclass(kernels, stem):
    x = input_of('stem').as_subclass(Tagged)
    torch.testing.assert_close(run_block(stem, x), stem(x))
    with pytest.raises(ValueError, match='the input is a Tagged'):
        run_block(stem, x, True)
    assert len(kernels) == 0


BAD_IMAGES = {
    'None': None,
    'list': [[0.0]],
    'uint8': torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    'no batch': torch.zeros(3, 8, 8),
    '4 channels': torch.zeros(1, 4, 8, 8),
    '3x8 pixels': torch.zeros(1, 3, 3, 8),
}


@pytest.mark.parametrize('fused', ['auto', True, False])
@pytest.mark.parametrize('name', BAD_IMAGES)
def test_a_bad_image(kernels, name, fused):
    bad = BAD_IMAGES[name]
    if isinstance(bad, torch.Tensor):
        bad = bad.to(DEVICE)
    net = model(fused=fused)
    with pytest.raises(ValueError):
        net(bad)
    assert len(kernels) == 0


@pytest.mark.parametrize('kind', ['evss', 'inverted', 'merging', 'norm'])
def test_a_map_of_other_channels_raises_as_the_modules_do(kernels, kind):
    x = torch.cat(2 * [input_of(kind)], 1)
    with pytest.raises(RuntimeError) as expected:
        run_block(built(kind), x, False)
    with pytest.raises(RuntimeError) as actual:
        run_block(built(kind), x)
    assert str(actual.value) == str(expected.value)
    assert len(kernels) == 0


def test_blocks_of_a_plain_stage():
    blocks = [LayerNorm2d(8), LayerNorm2d(8)]
    assert blocks_to_run(nn.Sequential(*blocks)) == blocks
    assert blocks_to_run(nn.Sequential()) == []


@pytest.mark.parametrize(
    'change',
    [
        lambda stage: stage.register_forward_hook(print),
        lambda stage: stage.register_forward_pre_hook(print),
        lambda stage: stage.register_full_backward_hook(print),
        lambda stage: setattr(stage, 'forward', print),
        lambda stage: setattr(stage, '__class__', nn.ModuleList),
    ],
    ids=['hook', 'pre-hook', 'backward hook', 'forward', 'class'],
)
def test_a_changed_stage_is_one_block(change):
    stage = nn.Sequential(LayerNorm2d(8))
    change(stage)
    assert blocks_to_run(stage) == [stage]
