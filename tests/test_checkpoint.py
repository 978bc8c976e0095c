import numpy as np
import pytest
import torch

from evmamba_mm import ARCHS, EfficientVMamba
from evmamba_mm.checkpoint import convert_released, strip_wrappers


def released_keys(reference_dir, arch):
    lines = (
        (reference_dir / f'official_state_dict_{arch}.txt')
        .read_text()
        .splitlines()
    )
    state_dict = {}
    for line in lines:
        key, shape, dtype = line.split('\t')
        sizes = [int(s) for s in shape.strip('()').split(',') if s.strip()]
        state_dict[key] = torch.empty(
            sizes, dtype=getattr(torch, dtype), device='meta'
        )
    return state_dict


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'module.module.'])
def test_every_released_key_is_consumed(reference_dir, arch, prefix):
    released = released_keys(reference_dir, arch)
    converted = convert_released({prefix + k: v for k, v in released.items()})
    assert converted.channels == ARCHS[arch].channels
    assert converted.depths == ARCHS[arch].depths
    assert converted.left_out == ()
    assert len(converted.state_dict) == len(released)
    with torch.device('meta'):
        model = EfficientVMamba(arch)
    expected = {
        f'backbone.{k}': (v.shape, v.dtype)
        for k, v in model.state_dict().items()
    }
    expected['head.fc.weight'] = (
        (1000, ARCHS[arch].channels[-1]),
        torch.float32,
    )
    expected['head.fc.bias'] = ((1000,), torch.float32)
    actual = {k: (v.shape, v.dtype) for k, v in converted.state_dict.items()}
    assert actual == expected


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture(scope='module')
def parity(reference_dir):
    return np.load(reference_dir / 'official_parity_small_arch.npz')


@pytest.fixture(scope='module')
def converted(parity):
    return convert_released(
        {
            key.removeprefix('weight/'): torch.from_numpy(parity[key])
            for key in parity
            if key.startswith('weight/')
        }
    )


@pytest.mark.parametrize('size', ['even', 'odd'])
@pytest.mark.parametrize('backend', ['naive', 'torch'])
def test_stages_and_logits_equal_the_released_model(
    parity, converted, size, backend
):
    backbone = EfficientVMamba(
        dict(channels=converted.channels, depths=converted.depths),
        out_indices=(0, 1, 2, 3),
        scan_backend=backend,
    ).eval()
    weights = {
        k.removeprefix('backbone.'): v for k, v in converted.state_dict.items()
    }
    fc = {k: weights.pop(f'head.fc.{k}') for k in ('weight', 'bias')}
    missing, unexpected = backbone.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert {k.split('.')[0] for k in missing} == {'norm0', 'norm1', 'norm2'}
    last_norm = backbone.norm3
    for i in range(4):
        setattr(backbone, f'norm{i}', torch.nn.Identity())
    with torch.no_grad():
        outputs = backbone(torch.from_numpy(parity[f'input/{size}']))
        pooled = last_norm(outputs[3]).mean((2, 3))
        logits = torch.nn.functional.linear(pooled, **fc)
    for i, y in enumerate(outputs):
        expected = torch.from_numpy(parity[f'stage{i}/{size}'])
        assert relative_error(y, expected) < 1e-5, f'stage {i}'
    expected = torch.from_numpy(parity[f'logits/{size}'])
    assert relative_error(logits, expected) < 1e-5


def released_like(model):
    """The released names of a model's weights, written out by hand."""
    names = {}
    for key, value in model.state_dict().items():
        part = key.split('.')
        if part[0] == 'patch_embed':
            name = f'patch_embed.{"0" if part[1] == "conv" else "2"}.{part[2]}'
        elif part[0] == 'downsamples':
            number = 1 + len(model.stages[int(part[1])]) + 1
            scans = hasattr(model.stages[int(part[1])][0], 'mixer')
            place = 'downsample' if scans else number
            name = f'layers.{part[1]}.{place}.{part[2]}.{part[3]}'
        elif part[0] == 'norm3':
            name = f'classifier.norm.{part[1]}'
        elif hasattr(model.stages[int(part[1])][0], 'mixer'):
            rest = '.'.join(part[3:]).replace('mixer.', 'op.')
            name = f'layers.{part[1]}.blocks.{part[2]}.{rest}'
        else:
            rest = '.'.join(part[3:])
            name = f'layers.{part[1]}.{int(part[2]) + 1}.{rest}'
        names[name] = value
    return names


@pytest.mark.parametrize(
    'block_types',
    [('evss',) * 4, ('es2d',) * 4, ('inverted_residual',) * 4],
    ids='-'.join,
)
def test_block_types_are_recognised(block_types):
    model = EfficientVMamba('atto', block_types=block_types)
    converted = convert_released(released_like(model), target='backbone')
    assert converted.block_types == block_types
    assert converted.channels == ARCHS['atto'].channels
    model.load_state_dict(converted.state_dict, strict=True)


def test_a_bare_backbone_reports_the_head():
    weights = released_like(EfficientVMamba('atto'))
    weights['classifier.head.weight'] = torch.zeros(10, 128)
    weights['classifier.head.bias'] = torch.zeros(10)
    converted = convert_released(weights, target='backbone')
    assert converted.left_out == (
        'classifier.head.weight',
        'classifier.head.bias',
    )
    assert not any(k.startswith('head') for k in converted.state_dict)


def test_foreign_keys_are_named():
    weights = {'layer1.0.conv1.weight': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'1 of 1.*layer1\.0\.conv1'):
        convert_released(weights)


def test_unknown_target_is_named():
    with pytest.raises(ValueError, match="'classifier' or 'backbone'"):
        convert_released({}, target='detector')


def test_a_clash_of_prefixes_is_told():
    with pytest.raises(ValueError, match="'a' occurs twice"):
        strip_wrappers({'module.a': torch.zeros(1), 'a': torch.zeros(1)})
