"""The same changes on every module of every kind of block."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from evmamba_mm.fast import difference, run_block

from .changes import (
    BLOCKS,
    DEVICE,
    Scaled,
    Tagged,
    Wrapper,
    assert_same,
    built,
    by_block,
    changed,
    input_of,
    is_same,
    odd,
    put,
    seen,
    with_lora,
)

MODULES = [
    (kind, path) for kind in BLOCKS for path, _ in built(kind).named_modules()
]
BELOW = [(kind, path) for kind, path in MODULES if path]
WEIGHTED = [
    (kind, path)
    for kind, path in MODULES
    if isinstance(
        built(kind).get_submodule(path),
        nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d,
    )
]
LINEAR = [
    (kind, path)
    for kind, path in WEIGHTED
    if isinstance(built(kind).get_submodule(path), nn.Linear | nn.Conv2d)
]
RAW = [
    (kind, name)
    for kind in ('evss', 'ss2d')
    for name, _ in built(kind).mixer.named_parameters(recurse=False)
]


def names(cases):
    return [f'{kind}-{path or "block"}' for kind, path in cases]


def on(cases):
    return pytest.mark.parametrize('kind,path', cases, ids=names(cases))


def check(kernels, kind, change, where=''):
    """'auto' does what False does, which is not what it did unchanged."""
    x = input_of(kind)
    first = changed(kind, change)
    second = changed(kind, change, checked=True)
    why = difference(first, x)
    assert why is not None and where in why
    with pytest.raises(ValueError, match=re.escape(why)):
        run_block(first, x, True)
    expected = seen(first, x, by_block(False))
    assert_same(seen(second, x, by_block('auto')), expected)
    assert len(kernels) == 0
    assert not is_same(expected, seen(built(kind), x, by_block(False)))


@on(MODULES)
def test_forward_hook(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        module.register_forward_hook(lambda m, args, y: odd(y))

    check(kernels, kind, change, f'{path or "the block"} has a hook')


@on(MODULES)
def test_forward_pre_hook(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        module.register_forward_pre_hook(lambda m, args: (odd(args[0]),))

    check(kernels, kind, change, f'{path or "the block"} has a hook')


def doubled(module, *gradients):
    return tuple(None if g is None else 2 * g for g in gradients[0])


@on(MODULES)
@pytest.mark.parametrize('when', ['before', 'after'])
def test_backward_hook(kernels, kind, path, when):
    def change(block):
        module = block.get_submodule(path)
        if when == 'before':
            module.register_full_backward_pre_hook(doubled)
        else:
            module.register_full_backward_hook(doubled)

    check(kernels, kind, change, f'{path or "the block"} has a hook')


@on(MODULES)
def test_forward_of_the_instance(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        forward = module.forward
        module.forward = lambda x: odd(forward(x))

    where = f'{path or "the block"} has a patched forward'
    check(kernels, kind, change, where)


@on(MODULES)
def test_forward_of_the_class(kernels, monkeypatch, kind, path):
    x = input_of(kind)
    unchanged = seen(built(kind), x, by_block(False))
    owner = type(built(kind).get_submodule(path))
    forward = owner.forward
    monkeypatch.setattr(owner, 'forward', lambda *args: odd(forward(*args)))
    expected = seen(built(kind), x, by_block(False))
    assert_same(seen(built(kind), x, by_block('auto')), expected)
    assert len(kernels) == 0
    assert not is_same(expected, unchanged)


@on(MODULES)
def test_subclass(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        base = type(module)

        class Other(base):
            def forward(self, x):
                return odd(base.forward(self, x))

        module.__class__ = Other

    check(kernels, kind, change, 'Other')


@on(BELOW)
def test_adapter(kernels, kind, path):
    def change(block):
        put(block, path, Wrapper(block.get_submodule(path)))

    check(kernels, kind, change, f'{path} is a Wrapper')


@on(BELOW)
def test_another_module_behind(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        put(block, path, nn.Sequential(module, nn.Tanh()))

    check(kernels, kind, change, path)


@on(LINEAR)
def test_lora(kernels, kind, path):
    def change(block):
        put(block, path, with_lora(block.get_submodule(path)))

    check(kernels, kind, change, f'{path} is a Lora')


@on(WEIGHTED)
def test_pruned(kernels, kind, path):
    def change(block):
        prune.l1_unstructured(block.get_submodule(path), 'weight', 0.5)

    check(kernels, kind, change, f'{path or "the block"} has a hook')


@on(WEIGHTED)
def test_pruned_without_the_hook(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        prune.l1_unstructured(module, 'weight', 0.5)
        module._forward_pre_hooks.clear()

    check(kernels, kind, change, path)


@on(WEIGHTED)
def test_parametrized(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        parametrize.register_parametrization(module, 'weight', Scaled())

    check(kernels, kind, change, 'Parametrized')


@on(LINEAR)
def test_spectral_norm(kernels, kind, path):
    def change(block):
        parametrizations.spectral_norm(block.get_submodule(path))

    check(kernels, kind, change, f'{path} is a Parametrized')


@on(LINEAR)
def test_weight_norm(kernels, kind, path):
    def change(block):
        module = parametrizations.weight_norm(block.get_submodule(path))
        with torch.no_grad():
            module.parametrizations.weight.original0.mul_(1.5)

    check(kernels, kind, change, f'{path} is a Parametrized')


@on(LINEAR)
@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
def test_weight_norm_by_hooks(kernels, kind, path):
    def change(block):
        module = nn.utils.weight_norm(block.get_submodule(path))
        with torch.no_grad():
            module.weight_g.mul_(1.5)

    check(kernels, kind, change, f'{path} has a hook')


@on(WEIGHTED)
def test_weight_of_a_tensor_subclass(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        weight = module.weight.detach().as_subclass(Tagged)
        module.weight = nn.Parameter(weight)

    check(kernels, kind, change, 'weight that is no ordinary tensor')


@on(WEIGHTED)
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.bfloat16], ids=['fp64', 'bf16']
)
def test_other_dtype(kernels, kind, path, dtype):
    def change(block):
        block.get_submodule(path).to(dtype)

    check(kernels, kind, change, f'in {dtype} on {DEVICE}')


@on(WEIGHTED)
def test_no_weight(kernels, kind, path):
    def change(block):
        module = block.get_submodule(path)
        if isinstance(module, nn.Linear | nn.Conv2d):
            # Weights whose shape fits another map.
            module.weight = nn.Parameter(module.weight.detach()[:-1])
        else:
            module.weight = None

    check(kernels, kind, change)


@on(RAW)
def test_pruned_parameter_of_the_mixer(kernels, kind, path):
    def change(block):
        prune.l1_unstructured(block.mixer, path, 0.5)

    check(kernels, kind, change, 'mixer has a hook')


@on(RAW)
def test_parametrized_parameter_of_the_mixer(kernels, kind, path):
    def change(block):
        parametrize.register_parametrization(block.mixer, path, Scaled())

    check(kernels, kind, change, 'mixer is a Parametrized')


@on(RAW)
def test_parameter_of_the_mixer_in_fp64(kernels, kind, path):
    def change(block):
        parameter = getattr(block.mixer, path).detach().double()
        setattr(block.mixer, path, nn.Parameter(parameter * 1.5))

    check(kernels, kind, change, f'mixer has its {path} in torch.float64')
