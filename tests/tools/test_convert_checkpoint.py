import argparse
import importlib.util
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from evmamba_mm import EfficientVMamba

from ..test_checkpoint import released_like

TOOLS = Path(__file__).parents[2] / 'tools'
TOOL = TOOLS / 'model_converters' / 'convert_checkpoint.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('convert_checkpoint', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def released_weights(seed, block_types=None):
    torch.manual_seed(seed)
    options = {} if block_types is None else dict(block_types=block_types)
    weights = released_like(EfficientVMamba('atto', **options))
    weights['classifier.head.weight'] = torch.randn(10, 128)
    weights['classifier.head.bias'] = torch.randn(10)
    return weights


@pytest.fixture
def released_file(tmp_path):
    plain, ema = released_weights(0), released_weights(1)
    path = tmp_path / 'released.pth.tar'
    torch.save(
        dict(
            epoch=297,
            args=argparse.Namespace(lr=2e-3),
            state_dict=OrderedDict(
                (f'module.{k}', v) for k, v in plain.items()
            ),
            state_dict_ema={f'module.module.{k}': v for k, v in ema.items()},
        ),
        path,
    )
    return path, plain, ema


@pytest.mark.parametrize('average', [False, True], ids=['plain', 'ema'])
def test_converts_and_loads_strictly(tool, released_file, average, capsys):
    path, plain, ema = released_file
    out = path.with_name('out.pth')
    flags = ['--ema'] if average else []
    assert tool.main([str(path), str(out), *flags]) == 0
    assert 'atto' in capsys.readouterr().out
    stored = torch.load(out, weights_only=True)
    assert stored['meta']['ema'] is average
    weights = stored['state_dict']
    source = ema if average else plain
    assert torch.equal(
        weights.pop('head.fc.weight'), source['classifier.head.weight']
    )
    weights.pop('head.fc.bias')
    backbone = EfficientVMamba('atto')
    backbone.load_state_dict(
        {k.removeprefix('backbone.'): v for k, v in weights.items()}
    )
    assert torch.equal(backbone.norm3.weight, source['classifier.norm.weight'])


def test_bare_backbone_initialises_by_config(tool, released_file, capsys):
    path, plain, _ = released_file
    out = path.with_name('out.pth')
    assert tool.main([str(path), str(out), '--target', 'backbone']) == 0
    assert 'left out' in capsys.readouterr().out
    config = dict(type='Pretrained', checkpoint=str(out))
    model = EfficientVMamba('atto', out_indices=(0, 3), init_cfg=config)
    model.init_weights()
    assert torch.equal(
        model.patch_embed.conv.weight, plain['patch_embed.0.weight']
    )


def test_writes_safetensors(tool, released_file):
    safetensors = pytest.importorskip(
        'safetensors.torch', reason='safetensors is not installed'
    )
    path, plain, _ = released_file
    out = path.with_name('out.safetensors')
    assert tool.main([str(path), str(out)]) == 0
    stored = safetensors.load_file(out)
    bias = stored['head.fc.bias']
    assert torch.equal(bias, plain['classifier.head.bias'])
    with safetensors.safe_open(out, 'pt') as file:
        meta = json.loads(file.metadata()['evmamba_mm'])
    assert (meta['model'], meta['arch']) == ('EfficientVMamba', 'atto')


def fails(tool, capsys, *arguments):
    assert tool.main([str(a) for a in arguments]) == 1
    return capsys.readouterr().err


def test_another_arch_is_refused(tool, released_file, capsys):
    path = released_file[0]
    out = path.with_name('out.pth')
    error = fails(tool, capsys, path, out, '--arch', 'tiny')
    assert 'holds atto' in error and "not 'tiny'" in error
    assert not out.exists()


def test_what_does_not_fit_is_listed(tool, tmp_path, capsys):
    weights = released_weights(0)
    del weights['layers.0.blocks.0.norm.bias']
    weights['layers.1.blocks.0.op.Ds'] = torch.zeros(3)
    torch.save(weights, tmp_path / 'a.pth')
    error = fails(tool, capsys, tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert '2 weights do not fit' in error
    assert 'missing: backbone.stages.0.0.norm.bias (16,)' in error
    assert 'backbone.stages.1.0.mixer.Ds is (3,), must be (256,)' in error


def test_truncated_file(tool, released_file, capsys):
    path = released_file[0]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    error = fails(tool, capsys, path, path.with_name('out.pth'))
    assert 'is truncated or damaged' in error


def test_missing_file(tool, tmp_path, capsys):
    error = fails(tool, capsys, tmp_path / 'no.pth', tmp_path / 'out.pth')
    assert 'there is no file' in error


class RunsCode:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_a_pickle_that_would_run_code(tool, tmp_path, capsys, legacy):
    marker, path = tmp_path / 'marker', tmp_path / 'evil.pth'
    torch.save(
        dict(state_dict=released_weights(0), extra=RunsCode(marker)),
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    error = fails(tool, capsys, path, tmp_path / 'out.pth')
    assert 'could run code' in error
    assert not marker.exists()


def test_not_a_checkpoint(tool, tmp_path, capsys):
    torch.save(torch.zeros(3), tmp_path / 'a.pth')
    error = fails(tool, capsys, tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert 'holds a Tensor, not a state dict' in error
    torch.save(dict(epoch=torch.ones(3), args=3), tmp_path / 'a.pth')
    error = fails(tool, capsys, tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert 'has none of state_dict, model; it has epoch, args' in error


def test_no_averaged_weights(tool, tmp_path, capsys):
    torch.save(released_weights(0), tmp_path / 'a.pth')
    error = fails(
        tool, capsys, tmp_path / 'a.pth', tmp_path / 'b.pth', '--ema'
    )
    assert 'has none of state_dict_ema, model_ema' in error
