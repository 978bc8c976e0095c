"""Changes after which a block is no longer what the kernels compute."""

import re
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from evmamba_mm.fast import difference, run_block
from evmamba_mm.layers import ConvSqueezeExcite, ScanMixer

from .changes import (
    MODES,
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
)


def replaced(path, make):
    return lambda block: put(block, path, make())


def with_settings(path, **settings):
    def change(block):
        for name, value in settings.items():
            setattr(block.get_submodule(path), name, value)

    return change


def with_conv(path, **settings):
    """A new convolution, with the old weight where it fits."""

    def change(block):
        old = block.get_submodule(path)
        arguments = dict(
            in_channels=old.in_channels,
            out_channels=old.out_channels,
            kernel_size=old.kernel_size,
            stride=old.stride,
            padding=old.padding,
            groups=old.groups,
            bias=old.bias is not None,
        )
        new = nn.Conv2d(**{**arguments, **settings})
        new.load_state_dict(
            {
                name: x
                for name, x in old.state_dict().items()
                if name in new.state_dict()
                and x.shape == new.state_dict()[name].shape
            },
            strict=False,
        )
        put(block, path, new)

    return change


def with_linear(path, bias):
    def change(block):
        old = block.get_submodule(path)
        new = nn.Linear(old.in_features, old.out_features, bias)
        new.weight = old.weight
        put(block, path, new)

    return change


def appended(path, make):
    def change(block):
        block.get_submodule(path).append(make())

    return change


def with_method(path, name, function):
    def change(block):
        module = block.get_submodule(path)
        setattr(module, name, MethodType(function, module))

    return change


class RootMeanSquare(nn.Module):
    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt()


class HalfScan(ScanMixer):
    def scan(self, u):
        return u / 2


tanh = partial(nn.GELU, approximate='tanh')
norm = partial(nn.BatchNorm2d, 8)
CHANGES = {}


def case(kind, where, name, change):
    identity = f'{kind}-{where}-{name}'
    assert identity not in CHANGES
    CHANGES[identity] = (kind, where, change)


for where in ('conv_branch.2', 'se.act'):
    for make in (nn.ReLU, nn.SiLU, nn.Identity, tanh):
        name = getattr(make, '__name__', 'tanh')
        case('evss', where, name, replaced(where, make))
    approximate = with_settings(where, approximate='tanh')
    case('evss', where, 'approximate', approximate)
for kind in ('evss', 'ss2d'):
    for make in (nn.GELU, nn.ReLU, nn.Hardswish):
        change = replaced('mixer.act', make)
        case(kind, 'mixer.act', make.__name__, change)
    # The modules refuse it while training: it would write into a view.
    in_place = with_settings('mixer.act', inplace=True)
    case(kind, 'mixer.act', 'in place', in_place)
for where in ('conv_pw.2', 'conv_dw.2', 'se.act'):
    for make in (nn.SiLU, nn.LeakyReLU, nn.Hardswish, nn.GELU):
        case('inverted', where, make.__name__, replaced(where, make))

for kind, where in (
    ('evss', 'mixer.conv2d'),
    ('evss', 'conv_branch.0'),
    ('inverted', 'conv_dw.0'),
):
    for name, settings in {
        'dilated': dict(dilation=2, padding=2),
        'unpadded': dict(padding=0),
        'strided': dict(stride=2),
        '5x5': dict(kernel_size=5, padding=2),
        '1x1': dict(kernel_size=1, padding=0),
        'full': dict(groups=1),
        'circular': dict(padding_mode='circular'),
        'reflect': dict(padding_mode='reflect'),
        'replicate': dict(padding_mode='replicate'),
    }.items():
        case(kind, where, name, with_conv(where, **settings))
    for name, settings in {
        'padding set': dict(padding=(0, 0)),
        'padding mode set': dict(padding_mode='circular'),
        'stride set': dict(stride=(2, 2)),
        'dilation set': dict(dilation=(2, 2), padding=(2, 2)),
        'groups set': dict(groups=1),
    }.items():
        case(kind, where, name, with_settings(where, **settings))
for where in ('mixer.conv2d', 'conv_branch.0', 'conv_branch.3'):
    case('evss', where, 'no bias', with_conv(where, bias=False))
for kind, where in (
    ('evss', 'conv_branch.3'),
    ('inverted', 'conv_pw.0'),
    ('inverted', 'conv_pw2.0'),
):
    case(kind, where, 'grouped', with_conv(where, groups=4))
    wider = with_conv(where, kernel_size=3, padding=1)
    case(kind, where, '3x3', wider)

for kind, where in (
    ('evss', 'mixer.in_proj'),
    ('evss', 'mixer.out_proj'),
    ('merging', 'reduction'),
):
    case(kind, where, 'bias', with_linear(where, True))
for where in ('se.global_reduce', 'se.channel_select'):
    case('evss', where, 'no bias', with_linear(where, False))

for kind, where, channels in (
    ('evss', 'se.norm', 8),
    ('evss', 'mixer.out_norm', 16),
):
    for name, make in {
        'Identity': nn.Identity,
        'RMSNorm': partial(nn.RMSNorm, channels),
        'RootMeanSquare': RootMeanSquare,
        'no affine': partial(nn.LayerNorm, channels, elementwise_affine=False),
        'no bias': partial(nn.LayerNorm, channels, bias=False),
        'adapter': lambda c=channels: Wrapper(nn.LayerNorm(c)),
    }.items():
        case(kind, where, name, replaced(where, make))
for kind, where, channels in (
    ('evss', 'norm', 8),
    ('stem', 'norm', 8),
    ('merging', 'norm', 16),
):
    for name, make in {
        'Identity': nn.Identity,
        'GroupNorm': partial(nn.GroupNorm, 1, channels),
        'BatchNorm2d': partial(nn.BatchNorm2d, channels),
        'LayerNorm': partial(nn.LayerNorm, channels),
    }.items():
        case(kind, where, name, replaced(where, make))

for kind, where, channels in (
    ('evss', 'conv_branch.1', 8),
    ('inverted', 'conv_pw.1', 16),
    ('inverted', 'conv_dw.1', 16),
    ('inverted', 'conv_pw2.1', 8),
):
    batch_norm = partial(nn.BatchNorm2d, channels)
    for name, make in {
        'no statistics': partial(batch_norm, track_running_stats=False),
        'momentum None': partial(batch_norm, momentum=None),
        'no affine': partial(batch_norm, affine=False),
        'GroupNorm': partial(nn.GroupNorm, 2, channels),
        'InstanceNorm2d': partial(nn.InstanceNorm2d, channels),
        'SyncBatchNorm': partial(nn.SyncBatchNorm, channels),
        'FrozenBatchNorm2d': partial(FrozenBatchNorm2d, channels),
    }.items():
        case(kind, where, name, replaced(where, make))
    stopped = with_settings(where, track_running_stats=False)
    case(kind, where, 'statistics stopped', stopped)
    emptied = with_settings(where, running_mean=None, running_var=None)
    case(kind, where, 'statistics removed', emptied)

for name, settings in {
    '7x7 stride 4': dict(kernel_size=7, stride=4, padding=3),
    'overlapping': dict(stride=2),
    'padded': dict(padding=1),
    'dilated': dict(dilation=2),
    '4x2': dict(kernel_size=(4, 2), stride=(4, 2)),
    'no bias': dict(bias=False),
}.items():
    case('stem', 'conv', name, with_conv('conv', **settings))
convolutions = replaced(
    'conv',
    lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1)
    ),
)
case('stem', 'conv', 'two convolutions', convolutions)

for kind, where, name, make in (
    ('evss', 'se', 'Identity', nn.Identity),
    ('evss', 'se', 'ConvSqueezeExcite', partial(ConvSqueezeExcite, 8, 2)),
    ('inverted', 'se', 'Identity', nn.Identity),
    ('evss', 'mixer', 'Identity', nn.Identity),
    ('evss', 'mixer', 'Conv2d', partial(nn.Conv2d, 8, 8, 3, padding=1)),
    ('evss', 'mixer', 'HalfScan', partial(HalfScan, 8, 1)),
    ('evss', 'conv_branch', 'Identity', nn.Identity),
    ('evss', 'drop_path', 'Dropout', partial(nn.Dropout, 0.5)),
    ('ss2d', 'drop_path', 'Dropout', partial(nn.Dropout, 0.5)),
    ('inverted', 'drop_path', 'Dropout', partial(nn.Dropout, 0.5)),
    ('merging', 'reduction', 'Tanh', nn.Tanh),
):
    case(kind, where, name, replaced(where, make))
for kind, where in (
    ('evss', 'conv_branch'),
    ('inverted', 'conv_pw'),
    ('inverted', 'conv_dw'),
    ('inverted', 'conv_pw2'),
):
    case(kind, where, 'appended', appended(where, nn.Tanh))

case(
    'evss',
    'mixer has a patched scan',
    'patched',
    with_method('mixer', 'scan', lambda mixer, u: u / 2),
)
case(
    'evss',
    'mixer.conv2d has a patched _conv_forward',
    'patched',
    with_method('mixer.conv2d', '_conv_forward', lambda conv, x, w, b: odd(x)),
)
case('evss', 'there are no kernels for a Wrapper', 'whole', Wrapper)
case(
    'norm', 'there are no kernels for a BatchNorm2d', 'whole', lambda _: norm()
)


@pytest.mark.filterwarnings('ignore:Using padding=')
@pytest.mark.parametrize('identity', CHANGES)
def test_a_changed_block_runs_by_its_modules(kernels, identity):
    kind, where, change = CHANGES[identity]
    x = input_of(kind)
    changes_something = False
    for training, with_grad in MODES:
        first = changed(kind, change, training)
        second = changed(kind, change, training, checked=True)
        why = difference(first, x)
        assert why is not None and why.startswith(where)
        with pytest.raises(ValueError, match=re.escape(why)):
            run_block(first, x, True)
        expected = seen(first, x, by_block(False), with_grad)
        actual = seen(second, x, by_block('auto'), with_grad)
        assert_same(actual, expected)
        original = built(kind).train(training)
        unchanged = seen(original, x, by_block(False), with_grad)
        changes_something |= not is_same(expected, unchanged)
    assert changes_something
    assert len(kernels) == 0


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_unchanged_blocks_run_by_kernels(kernels, training):
    for kind in ('evss', 'ss2d', 'inverted', 'stem', 'merging', 'norm'):
        x = input_of(kind)
        first, second = (built(kind).train(training) for _ in range(2))
        assert difference(first, x) is None
        actual = seen(second, x, by_block('auto'), training)
        assert kernels.blocks.pop() is second
        assert_same(actual, seen(first, x, by_block(False), training))


@pytest.mark.parametrize('kind', ['evss', 'inverted', 'norm'])
def test_a_hook_on_all_modules_runs(kernels, kind):
    x = input_of(kind)
    unchanged = seen(built(kind), x, by_block(False))
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: odd(y)
    )
    try:
        expected = seen(built(kind), x, by_block(False))
        assert_same(seen(built(kind), x, by_block('auto')), expected)
    finally:
        hook.remove()
    assert not is_same(expected, unchanged)
    assert len(kernels) == 0


@pytest.mark.parametrize('where', ['conv_branch.2', 'mixer.act', 'se.norm'])
def test_a_changed_block_under_autocast(kernels, where):
    def change(block):
        put(block, where, nn.Tanh())

    x = input_of('evss')
    first, second = (changed('evss', change) for _ in range(2))
    expected = seen(first, x, by_block(False), dtype=torch.bfloat16)
    actual = seen(second, x, by_block('auto'), dtype=torch.bfloat16)
    assert_same(actual, expected)
    assert len(kernels) == 0
