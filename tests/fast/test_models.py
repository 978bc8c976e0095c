"""Whole models: every option, and changes above the blocks."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from evmamba_mm import EfficientVMamba
from evmamba_mm.fast import difference
from evmamba_mm.layers import DropPath

from .changes import (
    Wrapper,
    assert_same,
    by_model,
    image,
    is_same,
    model,
    odd,
    seen,
)

SMALL = dict(
    arch=dict(channels=(8, 16), depths=(1, 1)),
    block_types=('evss', 'inverted_residual'),
    out_indices=-1,
)
small = partial(model, **SMALL)
# Stem, two blocks, what lies between, and the output's norm.
BLOCKS_OF_SMALL = 5


def compare(kernels, build, x, with_grad=True, unchanged=small, dtype=None):
    """Numbers of blocks by kernels; the change must change the result."""
    expected = seen(build(), x, by_model(False), with_grad, dtype)
    assert len(kernels) == 0
    actual = seen(build(), x, by_model('auto'), with_grad, dtype)
    tolerance = 3e-4 if dtype is None else 0.08
    assert_same(actual, expected, tolerance)
    before = seen(unchanged(), x, by_model(False), with_grad, dtype)
    assert not is_same(expected, before)
    return len(kernels)


@pytest.mark.parametrize(
    'build,size,training,with_grad',
    [
        (model, (2, 32, 32), True, True),
        (small, (2, 37, 53), False, True),
        (model, (2, 64, 64), False, False),
        (model, (1, 37, 53), True, False),
    ],
    ids=['train', 'eval-odd', 'no_grad-64', 'train-no_grad-odd'],
)
def test_an_unchanged_model_runs_by_kernels(
    kernels, build, size, training, with_grad
):
    x = image(*size)
    first, second = (build().train(training) for _ in range(2))
    actual = seen(second, x, by_model('auto'), with_grad)
    # Four blocks and norms, the stem, three downsamples.
    assert len(kernels) == (12 if build is model else BLOCKS_OF_SMALL)
    expected = seen(first, x, by_model(False), with_grad)
    assert_same(actual, expected, 5e-4)


def test_an_unchanged_model_under_autocast(kernels):
    options = dict(with_grad=False, dtype=torch.bfloat16)
    actual = seen(small().eval(), image(), by_model('auto'), **options)
    assert len(kernels) == BLOCKS_OF_SMALL
    expected = seen(small().eval(), image(), by_model(False), **options)
    assert_same(actual, expected, 0.06)


# The option, and the blocks that still run by kernels.
OPTIONS = {
    'dt_rank': (dict(dt_rank=3), 5),
    'dt_rank a stage': (dict(dt_rank=[2, None]), 5),
    'd_state': (dict(d_state=6), 5),
    'expand_ratio': (dict(expand_ratio=1), 5),
    'se_ratio': (dict(se_ratio=0.5), 5),
    'step_size': (dict(step_size=3), 5),
    'step_size a stage': (dict(step_size=[1, 2]), 5),
    'inverted_expand_ratio': (dict(inverted_expand_ratio=2), 5),
    'inverted_se_ratio': (dict(inverted_se_ratio=0.5), 5),
    'mixer_act_cfg': (dict(mixer_act_cfg=dict(type='GELU')), 4),
    'act_cfg': (dict(act_cfg=dict(type='ReLU')), 4),
    'act_cfg tanh': (dict(act_cfg=dict(type='GELU', approximate='tanh')), 4),
    'inverted_act_cfg': (dict(inverted_act_cfg=dict(type='Hardswish')), 4),
    'drop_path_rate': (dict(drop_path_rate=0.9), 5),
    'frozen_stages': (dict(frozen_stages=2), 5),
    'norm_eval': (dict(norm_eval=True), 5),
    'block_types': (dict(block_types=('ss2d', 'es2d')), 5),
}


@pytest.mark.parametrize('name', OPTIONS)
def test_options_of_the_backbone(kernels, name):
    options, by_kernels = OPTIONS[name]

    def build():
        return small(**options).train()

    assert compare(kernels, build, image(2, 16, 24)) == by_kernels


def test_recomputed_blocks_run_by_kernels(kernels):
    x = image(2, 16, 24)
    expected = seen(small(with_cp=True), x, by_model(False))
    assert_same(seen(small(), x, by_model(False)), expected)
    actual = seen(small(with_cp=True), x, by_model('auto'))
    assert_same(actual, expected)
    # Both blocks of the stages run twice.
    assert len(kernels) == BLOCKS_OF_SMALL + 2


class Stage(nn.Sequential):
    def forward(self, x):
        return odd(super().forward(x))


def wrapped(model):
    model.stages[1] = Wrapper(model.stages[1])


def hooked(model):
    model.stages[0].register_forward_hook(lambda m, args, y: odd(y))


def hooked_before(model):
    model.stages[0].register_forward_pre_hook(lambda m, args: odd(args[0]))


def hooked_after(model):
    def double(module, dx, dy):
        return (2 * dx[0],)

    model.stages[0].register_full_backward_hook(double)


def of_another_class(model):
    model.stages[0] = Stage(*model.stages[0])


def with_own_forward(model):
    stage = model.stages[0]
    forward = stage.forward
    stage.forward = lambda x: odd(forward(x))


def with_appended_module(model):
    model.stages[0].append(nn.Tanh())


def without_a_block(model):
    model.stages[0] = nn.Sequential()


def with_all_drop_path(model):
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.5


def with_other_stem(model):
    model.patch_embed.conv = nn.Conv2d(3, 8, 7, stride=4, padding=3)


def with_pooling(model):
    model.downsamples[0] = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 16, 1))


def with_another_norm(model):
    model.norm1 = nn.GroupNorm(1, 16)


def without_a_norm(model):
    model.norm1 = nn.Identity()


def with_a_hook_on_the_model(model):
    model.register_forward_pre_hook(lambda m, args: odd(args[0]))


# The change, and the blocks that still run by kernels.
CHANGES = {
    'stage wrapped': (wrapped, 4),
    'stage hooked': (hooked, 4),
    'stage hooked before': (hooked_before, 4),
    'stage hooked in the backward': (hooked_after, 4),
    'stage of another class': (of_another_class, 4),
    'stage with its own forward': (with_own_forward, 4),
    'stage with a module more': (with_appended_module, 5),
    'stage without blocks': (without_a_block, 4),
    'drop path everywhere': (with_all_drop_path, 5),
    'stem of 7x7': (with_other_stem, 4),
    'pooling between': (with_pooling, 4),
    'output norm replaced': (with_another_norm, 4),
    'output norm removed': (without_a_norm, 4),
    'model hooked': (with_a_hook_on_the_model, 5),
}


@pytest.mark.parametrize('name', CHANGES)
def test_changes_above_the_blocks(kernels, name):
    change, by_kernels = CHANGES[name]

    def build():
        net = small()
        torch.manual_seed(0)
        change(net)
        return net.to(image().device)

    # Gradients take the interpreter long; each block's are compared alone.
    with_grad = name == 'stage hooked in the backward'
    ran = compare(kernels, build, image(2, 16, 24), with_grad)
    assert ran == by_kernels


def test_the_stem_of_7x7_keeps_its_tokens(kernels):
    net = small().eval()
    with_other_stem(net)
    net.to(image().device)
    tokens = []
    net.stages[0][0].norm.register_forward_hook(
        lambda m, args, y: tokens.append(args[0].shape[2:])
    )
    with torch.no_grad():
        net(image(1, 64, 64))
    assert tokens == [(16, 16)]


def test_a_change_takes_effect_in_the_next_call(kernels):
    net, x = small().eval(), image(1, 16, 16)
    with torch.no_grad():
        before = net(x)[0]
        hook = net.stages[0][0].mixer.act.register_forward_hook(
            lambda m, args, y: odd(y)
        )
        during = net(x)[0]
        hook.remove()
        after = net(x)[0]
    assert not torch.allclose(before, during)
    assert torch.equal(before, after)
    assert len(kernels) == 3 * BLOCKS_OF_SMALL - 1


def test_a_copied_and_a_moved_model_run_by_kernels(kernels):
    net, x = small().eval(), image(1, 16, 16)
    with torch.no_grad():
        expected = net(x)[0]
        other = copy.deepcopy(net).double().float()
        torch.testing.assert_close(other(x)[0], expected)
    assert len(kernels) == 2 * BLOCKS_OF_SMALL


def test_atto_is_standard():
    net, x = EfficientVMamba('atto', out_indices=range(4)), image()
    between = [nn.Identity(), *net.downsamples]
    blocks = [net.patch_embed]
    for downsample, stage in zip(between, net.stages, strict=True):
        blocks += [downsample, *stage]
    x = x.cpu()
    for block in blocks:
        if not isinstance(block, nn.Identity):
            assert difference(block, x) is None
            x = block(x)


CLASSIFIER_CHANGES = {
    'unchanged': (lambda net: None, 5),
    'hook': (lambda net: hooked(net.backbone), 4),
    'activation': (
        lambda net: setattr(
            net.backbone.stages[0][0].conv_branch, '2', nn.Hardswish()
        ),
        4,
    ),
    'norm of mmpretrain': (lambda net: with_layer_norm_2d(net.backbone), 4),
    'drop path of mmpretrain': (lambda net: with_drop_path(net.backbone), 4),
}


def with_layer_norm_2d(backbone):
    from mmpretrain.models.utils import LayerNorm2d

    backbone.norm1 = LayerNorm2d(16)


def with_drop_path(backbone):
    drop_path = pytest.importorskip('mmcv.cnn.bricks').DropPath
    backbone.stages[0][0].drop_path = drop_path(0.5)


@pytest.mark.parametrize('name', CLASSIFIER_CHANGES)
def test_changes_in_a_classifier(kernels, name):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    from mmpretrain.models import ImageClassifier
    from mmpretrain.structures import DataSample

    change, by_kernels = CLASSIFIER_CHANGES[name]

    def loss(fused):
        def run(net, x):
            net.backbone.fused = fused
            labels = [DataSample().set_gt_label(i) for i in range(len(x))]
            return net.loss(x, labels)['loss']

        return run

    def build():
        torch.manual_seed(0)
        net = ImageClassifier(
            backbone=dict(type='EfficientVMamba', **SMALL, d_state=4),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
        )
        net.backbone = small()
        change(net)
        return net.to(image().device)

    x = image(2, 16, 24)
    expected = seen(build(), x, loss(False))
    assert_same(seen(build(), x, loss('auto')), expected)
    assert len(kernels) == by_kernels
