"""Classes and functions that somebody replaces, which the layers then call."""

import subprocess
import sys

import pytest
import torch.nn.functional as F
from torch import nn

from evmamba_mm.fast import difference
from evmamba_mm.layers import ES2D, EVSSBlock, ScanMixer, layer_norm

from .changes import (
    assert_same,
    built,
    by_block,
    input_of,
    is_same,
    odd,
    seen,
)


@pytest.mark.parametrize(
    'owner,method',
    [
        (nn.Module, '__call__'),
        (nn.Module, '_call_impl'),
        (nn.Conv2d, '_conv_forward'),
        (nn.LayerNorm, 'forward'),
        (ScanMixer, 'forward'),
        (ES2D, 'scan'),
        (EVSSBlock, '_call_impl'),
        (nn.Conv2d, '_call_impl'),
    ],
    ids=lambda x: getattr(x, '__name__', x),
)
def test_a_patched_class_runs_by_its_modules(
    kernels, monkeypatch, owner, method
):
    kinds = ['evss']
    if owner in (nn.Module, nn.LayerNorm):
        kinds += ['stem', 'merging', 'norm']
    original = getattr(owner, method)
    unchanged = [
        seen(built(kind), input_of(kind), by_block(False)) for kind in kinds
    ]

    def patched(*args, **kwargs):
        return odd(original(*args, **kwargs))

    monkeypatch.setattr(owner, method, patched)
    for kind, before in zip(kinds, unchanged, strict=True):
        x = input_of(kind)
        expected = seen(built(kind), x, by_block(False))
        assert_same(seen(built(kind), x, by_block('auto')), expected)
        assert not is_same(expected, before)
    assert len(kernels) == 0


@pytest.mark.parametrize(
    'name,kind',
    [
        ('adaptive_avg_pool2d', 'inverted'),
        ('batch_norm', 'evss'),
        ('conv2d', 'stem'),
        ('gelu', 'evss'),
        ('layer_norm', 'norm'),
        ('linear', 'merging'),
        ('pad', 'merging'),
        ('relu', 'inverted'),
        ('silu', 'ss2d'),
    ],
)
def test_a_patched_function_of_torch_is_called(
    kernels, monkeypatch, name, kind
):
    """Counters of FLOPs replace these functions."""
    original = getattr(F, name)
    x = input_of(kind)
    unchanged = seen(built(kind), x, by_block(False))
    monkeypatch.setattr(F, name, lambda *a, **k: odd(original(*a, **k)))
    expected = seen(built(kind), x, by_block(False))
    assert_same(seen(built(kind), x, by_block('auto')), expected)
    assert not is_same(expected, unchanged)
    assert len(kernels) == 0
    why = f'torch.nn.functional has a patched {name}'
    assert difference(built(kind), x) == why


class Proxy:
    """Has all that it does not define from what it wraps, as wrapt's."""

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __call__(self, *args, **kwargs):
        return odd(self.wrapped(*args, **kwargs))

    def __getattr__(self, name):
        return getattr(self.wrapped, name)


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(F, 'layer_norm'), (F, 'gelu'), (layer_norm, 'channels_last')],
)
def test_a_proxy_is_no_original(monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, Proxy(getattr(owner, name)))
    why = f'{owner.__name__} has a patched {name}'
    assert difference(built('evss'), input_of('evss')) == why


@pytest.mark.parametrize(
    'function', [layer_norm.channels_last, F.layer_norm, nn.Linear.forward]
)
def test_new_code_of_a_function(monkeypatch, function):
    code = (lambda *args: odd(args[-1])).__code__.replace(co_freevars=())
    monkeypatch.setattr(function, '__code__', code)
    why = f'{function.__qualname__} has a patched __code__'
    assert difference(built('merging'), input_of('merging')) == why


PATCHED_EARLIER = """
import torch
from torch import nn

import functools
import torch.nn.functional as F

if {replaced} == 'function':
    F.conv2d = functools.partial(F.conv2d)
elif {replaced} == 'class':
    class Conv2d(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).sin()
    nn.Conv2d = Conv2d
else:
    nn.Conv2d.forward = lambda conv, x: x.sin()

from evmamba_mm.fast import difference
from evmamba_mm.layers import PatchEmbed

print(difference(PatchEmbed(3, 8), torch.ones(1, 3, 8, 8)))
"""


@pytest.mark.parametrize(
    ('replaced', 'why'),
    [
        ('class', 'Conv2d has a patched forward'),
        ('method', 'Conv2d has a patched forward'),
        ('function', 'torch.nn.functional has a patched conv2d'),
    ],
)
def test_torch_patched_before_the_import(replaced, why):
    script = PATCHED_EARLIER.format(replaced=repr(replaced))
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True
    )
    assert done.stdout == f'{why}\n', done.stderr


PATCHED_FOR_A_WHILE = """
import torch
import torch.nn.functional as F

relu, conv2d = F.relu, F.conv2d
F.conv2d = lambda *a, **k: conv2d(*a, **k)
F.relu = F.relu6
gelu = torch.nn.GELU.forward
torch.nn.GELU.forward = torch.nn.ReLU.forward

from evmamba_mm.fast import difference
from evmamba_mm.layers import PatchEmbed

block, x = PatchEmbed(3, 8), torch.ones(1, 3, 8, 8)
print(difference(block, x))
torch.nn.GELU.forward = gelu
print(difference(block, x))
F.conv2d = conv2d
print(difference(block, x))
F.relu = relu
print(difference(block, x))
"""


def test_torch_patched_only_while_it_is_imported():
    done = subprocess.run(
        [sys.executable, '-c', PATCHED_FOR_A_WHILE],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        'GELU has a patched forward',
        'torch.nn.functional has a patched conv2d',
        'torch.nn.functional has a patched relu',
        'None',
    ], done.stderr
