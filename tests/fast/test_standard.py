"""Changes that the kernels follow."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

from evmamba_mm.fast import difference, run_block
from evmamba_mm.layers import ES2D, SS2D, EVSSBlock, SqueezeExcite

from .changes import (
    DEVICE,
    assert_same,
    built,
    by_block,
    changed,
    input_of,
    is_same,
    put,
    randomised,
    seen,
)
from .test_mutations import replaced, with_conv, with_settings


def random(make):
    return lambda: randomised(make())


def new_weights(block):
    for parameter in block.parameters():
        parameter.data = parameter.data.flip(0) * 1.1


def weights_in_place(block):
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.1)


def half_frozen(block):
    for parameter in list(block.parameters())[::2]:
        parameter.requires_grad_(False)


def tied(block):
    block.se.norm.weight = block.norm.weight
    block.conv_branch[0].bias = block.norm.bias


def hook_on_a_gradient(block):
    block.mixer.out_proj.weight.register_hook(lambda g: 2 * g)


def gradients_after_hook(block):
    def scale(parameter):
        parameter.grad *= 3

    weight = block.mixer.x_proj_weight
    weight.register_post_accumulate_grad_hook(scale)


def strided_weights(block):
    # torch's BatchNorm on a CPU has wrong gradients with a strided weight.
    norms = {
        id(parameter)
        for norm in block.modules()
        if isinstance(norm, nn.BatchNorm2d)
        for parameter in norm.parameters()
    }
    for parameter in block.parameters():
        if id(parameter) in norms:
            continue
        padded = parameter.data.new_empty(*parameter.shape, 2)
        padded[..., 0] = parameter.data
        parameter.data = padded[..., 0]


def transposed_weights(block):
    for parameter in block.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()


def channels_last(block):
    block.to(memory_format=torch.channels_last)


def prune_made_permanent(block):
    prune.l1_unstructured(block.mixer.in_proj, 'weight', 0.5)
    prune.remove(block.mixer.in_proj, 'weight')


def norm_in_evaluation(path):
    return lambda block: block.get_submodule(path).eval() and None


def uncounted(path):
    return with_settings(path, num_batches_tracked=None)


def fusion_with_ss2d(block):
    put(block, 'mixer', randomised(SS2D(8, 4)))


FIVE = ('rows', 'columns', 'rows_reversed', 'columns_reversed', 'rows')
# The changes, and whether the result is another one.
CHANGES = {
    'evss-weights set': ('evss', new_weights, True),
    'evss-weights in place': ('evss', weights_in_place, True),
    'evss-half frozen': ('evss', half_frozen, False),
    'evss-frozen': ('evss', lambda block: block.requires_grad_(False), False),
    'evss-tied': ('evss', tied, True),
    'evss-hook on a gradient': ('evss', hook_on_a_gradient, True),
    'evss-hook on an added gradient': ('evss', gradients_after_hook, True),
    'evss-strided weights': ('evss', strided_weights, False),
    'evss-transposed weights': ('evss', transposed_weights, False),
    'evss-channels last': ('evss', channels_last, False),
    'evss-pruned for good': ('evss', prune_made_permanent, True),
    'evss-eps': ('evss', with_settings('norm', eps=0.1), True),
    'evss-eps in se': ('evss', with_settings('se.norm', eps=0.1), True),
    'evss-eps in mixer': ('evss', with_settings('mixer.out_norm', eps=1.0), 1),
    'evss-eps in bn': ('evss', with_settings('conv_branch.1', eps=0.1), True),
    'evss-bn for good': ('evss', norm_in_evaluation('conv_branch.1'), True),
    'evss-no bn': ('evss', replaced('conv_branch.1', nn.Identity), True),
    'evss-drop path': ('evss', with_settings('drop_path', drop_prob=0.5), 1),
    'evss-no fusion': ('evss', with_settings('', fusion=False), True),
    'evss-backend': ('evss', with_settings('mixer', backend='naive'), False),
    'evss-ss2d': ('evss', fusion_with_ss2d, True),
    'evss-wider se': (
        'evss',
        replaced('se', random(partial(SqueezeExcite, 8, 0.5))),
        True,
    ),
    'evss-step of 3': (
        'evss',
        replaced('mixer', random(partial(ES2D, 8, 3, 4))),
        True,
    ),
    'evss-other sizes': (
        'evss',
        replaced('mixer', random(partial(ES2D, 8, 1, 3, 3, 2))),
        True,
    ),
    'ss2d-five directions': (
        'ss2d',
        replaced('mixer', random(partial(SS2D, 8, 4, directions=FIVE))),
        True,
    ),
    'ss2d-other directions': (
        'ss2d',
        with_settings('mixer', directions=('rows', *FIVE[:3])),
        True,
    ),
    'ss2d-drop path': ('ss2d', with_settings('drop_path', drop_prob=0.5), 1),
    'inverted-weights set': ('inverted', new_weights, True),
    'inverted-half frozen': ('inverted', half_frozen, False),
    'inverted-strided weights': ('inverted', strided_weights, False),
    'inverted-channels last': ('inverted', channels_last, False),
    'inverted-eps': ('inverted', with_settings('conv_dw.1', eps=0.1), True),
    'inverted-momentum': (
        'inverted',
        with_settings('conv_dw.1', momentum=0.5),
        True,
    ),
    'inverted-bn uncounted': ('inverted', uncounted('conv_dw.1'), False),
    'inverted-bn for good': ('inverted', norm_in_evaluation('conv_pw.1'), 1),
    'inverted-no bn': ('inverted', replaced('conv_dw.1', nn.Identity), True),
    'inverted-no last bn': (
        'inverted',
        replaced('conv_pw2.1', nn.Identity),
        True,
    ),
    'inverted-bias': ('inverted', with_conv('conv_pw.0', bias=True), True),
    'inverted-dw bias': ('inverted', with_conv('conv_dw.0', bias=True), True),
    'inverted-relu in place': (
        'inverted',
        replaced('conv_dw.2', partial(nn.ReLU, inplace=True)),
        False,
    ),
    'inverted-drop path': (
        'inverted',
        with_settings('drop_path', drop_prob=0.5),
        True,
    ),
    'stem-weights set': ('stem', new_weights, True),
    'stem-strided weights': ('stem', strided_weights, False),
    'stem-channels last': ('stem', channels_last, False),
    'stem-eps': ('stem', with_settings('norm', eps=0.1), True),
    'stem-frozen': ('stem', lambda block: block.requires_grad_(False), False),
    'merging-transposed weights': ('merging', transposed_weights, False),
    'merging-eps': ('merging', with_settings('norm', eps=0.1), True),
    'norm-eps': ('norm', with_settings('', eps=0.1), True),
    'norm-strided weights': ('norm', strided_weights, False),
}


@pytest.mark.parametrize('identity', CHANGES)
def test_a_changed_block_runs_by_kernels(kernels, identity):
    kind, change, changes_something = CHANGES[identity]
    x = input_of(kind)
    differs = False
    for mode in (True, False):
        first = changed(kind, change, mode)
        second = changed(kind, change, mode, checked=True)
        assert difference(first, x) is None
        expected = seen(first, x, by_block(False), mode)
        assert_same(seen(second, x, by_block('auto'), mode), expected)
        assert kernels.blocks.pop() is second
        unchanged = seen(built(kind).train(mode), x, by_block(False), mode)
        # A GPU may convolve another layout in another order.
        tolerance = 3e-6 if changes_something else 2e-4
        differs |= not is_same(expected, unchanged, tolerance)
    assert differs == bool(changes_something)


LAYOUTS = {
    'nchw': lambda x: x.contiguous(),
    'channels last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'slice': lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    'every second': lambda x: x.repeat_interleave(2, 1)[:, ::2],
    'transposed': lambda x: x.mT.contiguous().mT,
    'expanded': lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kind', ['evss', 'inverted', 'stem', 'merging'])
def test_any_layout_of_the_input(kernels, kind, layout):
    block, x = built(kind).eval(), LAYOUTS[layout](input_of(kind))
    with torch.no_grad():
        actual = run_block(block, x)
        torch.testing.assert_close(actual, block(x), rtol=2e-4, atol=2e-4)
    assert len(kernels) == 1


@pytest.mark.parametrize('kind', ['evss', 'inverted', 'stem', 'merging'])
@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_under_autocast(kernels, kind, mode):
    x, training = input_of(kind), mode == 'train'
    first, second = (built(kind).train(training) for _ in range(2))
    options = dict(with_grad=training, dtype=torch.bfloat16)
    expected = seen(first, x, by_block(False), **options)
    actual = seen(second, x, by_block('auto'), **options)
    assert len(kernels) == 1
    assert_same(actual, expected, 0.06)


@pytest.mark.parametrize('kind', ['evss', 'inverted', 'stem', 'merging'])
def test_a_block_in_half_precision(kernels, kind):
    x = input_of(kind).bfloat16()
    first, second = (built(kind).bfloat16().eval() for _ in range(2))
    expected = seen(first, x, by_block(False), False)
    actual = seen(second, x, by_block('auto'), False)
    assert len(kernels) == 1
    assert_same(actual, expected, 0.06)


def test_inference_mode(kernels):
    block, x = built('evss').eval(), input_of('evss')
    with torch.inference_mode():
        actual = run_block(block, x)
        torch.testing.assert_close(actual, block(x), rtol=2e-4, atol=2e-4)
    assert len(kernels) == 1


def test_functional_call(kernels):
    class Runner(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.block, self.fused = built('evss'), fused

        def forward(self, x):
            return run_block(self.block, x, self.fused)

    x, results = input_of('evss'), []
    for fused in (False, 'auto'):
        runner = Runner(fused)
        parameters = {
            name: (1.1 * p.detach()).requires_grad_()
            for name, p in runner.named_parameters()
        }
        y = functional_call(runner, parameters, x)
        gradients = torch.autograd.grad(
            y.square().sum(), list(parameters.values())
        )
        results.append(dict(zip(parameters, gradients, strict=True)))
    assert len(kernels) == 1
    assert_same(results[1], results[0])


@pytest.mark.parametrize('kind', ['evss', 'inverted'])
def test_two_backwards_through_one_graph(kernels, kind):
    block, x = built(kind), input_of(kind).requires_grad_()
    y = run_block(block, x).square().sum()
    first, second = (
        torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2)
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize('kind', ['ss2d', 'inverted'])
def test_a_second_derivative_is_refused(kernels, kind):
    block, x = built(kind), input_of(kind).requires_grad_()
    with pytest.raises(RuntimeError, match='twice.*fused=False'):
        torch.autograd.grad(
            run_block(block, x).square().sum(), x, create_graph=True
        )


def test_one_value_per_channel_is_refused_in_training(kernels):
    x = torch.randn(1, 8, 1, 1, device=DEVICE)
    for fused in (False, 'auto'):
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            run_block(built('inverted'), x, fused)


def test_a_wide_block(kernels):
    def block():
        torch.manual_seed(0)
        mixer = ES2D(40, d_state=2, expand_ratio=1)
        return randomised(EVSSBlock(40, mixer)).to(DEVICE).eval()

    x = torch.randn(1, 40, 4, 4, device=DEVICE)
    expected = seen(block(), x, by_block(False), False)
    assert_same(seen(block(), x, by_block('auto'), False), expected)


def test_batched_gradients_say_what_serves_them(kernels):
    block, x = built('evss').train(), input_of('evss').requires_grad_()
    y = run_block(block, x)
    directions = torch.randn(2, *y.shape, device=y.device)
    with pytest.raises(RuntimeError, match='batched gradients.*fused=False'):
        torch.autograd.grad(y, x, directions, is_grads_batched=True)


def test_sparse_weights_are_left_to_the_modules(kernels):
    block, x = built('evss').eval(), input_of('evss')
    weight = block.mixer.in_proj.weight
    dense = weight.detach().clone()
    block.mixer.in_proj.weight = nn.Parameter(weight.detach().to_sparse())
    assert 'has a weight that is no ordinary tensor' in difference(block, x)
    block.mixer.in_proj.weight = nn.Parameter(dense)
    assert difference(block, x) is None
