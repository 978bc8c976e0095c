"""Released checkpoints of VMamba and Vim.

The released names are those that the plain references compute with.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evmamba_mm.backbones import (
    VIM_ARCHS,
    VMAMBA_ARCHS,
    Vim,
    VMamba,
)
from evmamba_mm.checkpoint import convert_released

from .backbones.peer_references import vim_logits, vmamba_logits

CLASSES = 7
VMAMBA = dict(channels=(16, 32), depths=(2, 1))
VIM = dict(channels=16, depth=2)


def vmamba_weights(channels, depths, states=16):
    """Weights of VMamba's first version, by name and shape."""
    shapes = {
        'patch_embed.proj.weight': (channels[0], 3, 4, 4),
        'patch_embed.proj.bias': (channels[0],),
    }

    def add_norm(name, width):
        shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (width,)

    add_norm('patch_embed.norm', channels[0])
    for stage, (width, depth) in enumerate(zip(channels, depths, strict=True)):
        inner, rank = 2 * width, -(-width // 16)
        for index in range(depth):
            block = f'layers.{stage}.blocks.{index}'
            add_norm(f'{block}.ln_1', width)
            add_norm(f'{block}.self_attention.out_norm', inner)
            inside = {
                'in_proj.weight': (2 * inner, width),
                'conv2d.weight': (inner, 1, 3, 3),
                'conv2d.bias': (inner,),
                'x_proj_weight': (4, rank + 2 * states, inner),
                'dt_projs_weight': (4, inner, rank),
                'dt_projs_bias': (4, inner),
                'A_logs': (4 * inner, states),
                'Ds': (4 * inner,),
                'out_proj.weight': (width, inner),
            }
            for name, shape in inside.items():
                shapes[f'{block}.self_attention.{name}'] = shape
        if stage < len(channels) - 1:
            merge = f'layers.{stage}.downsample'
            add_norm(f'{merge}.norm', 4 * width)
            shapes[f'{merge}.reduction.weight'] = (2 * width, 4 * width)
    add_norm('norm', channels[-1])
    return shapes | head_shapes(channels[-1])


def vim_weights(channels, depth, patches=196, patch_size=16, states=16):
    """Weights of Vim with a class token in the middle, by name and shape."""
    inner, rank = 2 * channels, -(-channels // 16)
    shapes = {
        'cls_token': (1, 1, channels),
        'pos_embed': (1, patches + 1, channels),
        'patch_embed.proj.weight': (channels, 3, patch_size, patch_size),
        'patch_embed.proj.bias': (channels,),
        'norm_f.weight': (channels,),
    }
    inside = {
        'norm.weight': (channels,),
        'mixer.in_proj.weight': (2 * inner, channels),
        'mixer.out_proj.weight': (channels, inner),
        'mixer.A_log': (inner, states),
        'mixer.A_b_log': (inner, states),
    }
    for b in ('', '_b'):
        inside |= {
            f'mixer.D{b}': (inner,),
            f'mixer.conv1d{b}.weight': (inner, 1, 4),
            f'mixer.conv1d{b}.bias': (inner,),
            f'mixer.x_proj{b}.weight': (rank + 2 * states, inner),
            f'mixer.dt_proj{b}.weight': (inner, rank),
            f'mixer.dt_proj{b}.bias': (inner,),
        }
    for index in range(depth):
        for name, shape in inside.items():
            shapes[f'layers.{index}.{name}'] = shape
    return shapes | head_shapes(channels)


def head_shapes(width):
    return {'head.weight': (CLASSES, width), 'head.bias': (CLASSES,)}


def filled(shapes, prefix=''):
    """Random weights in fp64 that show whether each is in its place."""
    generator = torch.Generator().manual_seed(0)
    return {
        prefix + name: 0.3
        * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def empty(shapes):
    return {
        name: torch.empty(shape, device='meta')
        for name, shape in shapes.items()
    }


def expected_shapes(backbone, width):
    shapes = {
        f'backbone.{k}': tuple(v.shape)
        for k, v in backbone.state_dict().items()
    }
    return shapes | {
        'head.fc.weight': (CLASSES, width),
        'head.fc.bias': (CLASSES,),
    }


def shapes_of(converted):
    return {k: tuple(v.shape) for k, v in converted.state_dict.items()}


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_every_key_of_vmamba_has_its_place(arch):
    settings = VMAMBA_ARCHS[arch]
    released = vmamba_weights(settings.channels, settings.depths)
    converted = convert_released(empty(released))
    with torch.device('meta'):
        model = VMamba(arch)
    width = settings.channels[-1]
    assert shapes_of(converted) == expected_shapes(model, width)
    assert converted.model == 'VMamba'
    assert converted.channels == settings.channels
    assert converted.depths == settings.depths
    assert converted.block_types == ('ss2d',) * 4


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_every_key_of_vim_has_its_place(arch):
    settings = VIM_ARCHS[arch]
    released = vim_weights(settings.channels, settings.depth)
    converted = convert_released(empty(released))
    with torch.device('meta'):
        model = Vim(arch)
    assert shapes_of(converted) == expected_shapes(model, settings.channels)
    assert converted.model == 'Vim'
    assert converted.channels == (settings.channels,)
    assert converted.depths == (settings.depth,)
    assert converted.block_types == ('vim',)


def loaded(backbone, converted):
    """The backbone with the weights, and those of the last layer."""
    weights = {
        k.removeprefix('backbone.'): v for k, v in converted.state_dict.items()
    }
    head = {k: weights.pop(f'head.fc.{k}') for k in ('weight', 'bias')}
    backbone.double().eval().load_state_dict(weights)
    return backbone, head


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_logits_of_vmamba_equal_the_plain_reference(prefix):
    released = vmamba_weights(**VMAMBA)
    converted = convert_released(filled(released, prefix))
    model, head = loaded(VMamba(VMAMBA), converted)
    image = torch.randn(3, 24, 32, dtype=torch.float64)
    with torch.no_grad():
        pooled = model(image[None])[0].mean((2, 3))
        expected = vmamba_logits(filled(released), image, VMAMBA['depths'])
    torch.testing.assert_close(F.linear(pooled, **head)[0], expected)


def test_logits_of_vim_equal_the_plain_reference():
    released = vim_weights(**VIM, patches=16, patch_size=8)
    converted = convert_released(filled(released))
    backbone = Vim(VIM, img_size=32, patch_size=8)
    model, head = loaded(backbone, converted)
    image = torch.randn(3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        logits = F.linear(model(image[None])[0], **head)[0]
        expected = vim_logits(filled(released), image, VIM['depth'])
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ('shapes', 'backbone'),
    [
        (vmamba_weights(**VMAMBA), VMamba(VMAMBA)),
        (vim_weights(**VIM), Vim(VIM)),
    ],
    ids=['vmamba', 'vim'],
)
def test_bare_backbone(shapes, backbone):
    converted = convert_released(empty(shapes), target='backbone')
    expected = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
    assert shapes_of(converted) == expected
    assert converted.left_out == ('head.weight', 'head.bias')


@pytest.mark.parametrize(
    ('shapes', 'key', 'message'),
    [
        (
            vmamba_weights(**VMAMBA),
            'layers.0.blocks.0.mlp.fc1.weight',
            r'released VMamba checkpoint: 1 of .*mlp\.fc1',
        ),
        (
            vim_weights(**VIM),
            'rope.freqs_cos',
            r'released Vim checkpoint: 1 of .*freqs_cos',
        ),
        (
            vim_weights(**VIM),
            'layers.0.mixer.gamma',
            r'released Vim checkpoint: 1 of .*gamma',
        ),
    ],
    ids=['feed-forward', 'rotary', 'layer-scale'],
)
def test_a_relative_of_the_released_model_is_refused(shapes, key, message):
    with pytest.raises(ValueError, match=message):
        convert_released(empty(shapes | {key: (1,)}))


def test_vim_without_a_class_token_is_refused():
    shapes = vim_weights(**VIM)
    del shapes['cls_token']
    with pytest.raises(ValueError, match='class token, cls_token, is missing'):
        convert_released(empty(shapes))


def test_a_converted_file_initialises_the_backbone(tmp_path):
    weights = filled(vmamba_weights(**VMAMBA))
    converted = convert_released(weights)
    torch.save(dict(state_dict=converted.state_dict), tmp_path / 'a.pth')
    model = VMamba(
        VMAMBA,
        out_indices=(0, 1),
        init_cfg=dict(
            type='Pretrained',
            checkpoint=str(tmp_path / 'a.pth'),
            prefix='backbone.',
        ),
    )
    model.init_weights()
    stored = weights['layers.1.blocks.0.self_attention.A_logs']
    assert torch.equal(model.stages[1][0].mixer.A_logs, stored.float())
    assert isinstance(model.norm0, nn.LayerNorm)
