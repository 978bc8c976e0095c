"""The converter on released checkpoints of VMamba and Vim."""

import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from ..test_checkpoint_peers import filled, vim_weights, vmamba_weights

TOOLS = Path(__file__).parents[2] / 'tools'
TOOL = TOOLS / 'model_converters' / 'convert_checkpoint.py'
VMAMBA_ATTO = dict(channels=(16, 32, 64, 128), depths=(2, 1, 2, 1))
CASES = {
    'VMamba': vmamba_weights(**VMAMBA_ATTO),
    'Vim': vim_weights(32, 4),
}


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('convert_checkpoint', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=CASES)
def model(request):
    return request.param


@pytest.fixture
def released(model, tmp_path):
    weights = {k: v.float() for k, v in filled(CASES[model]).items()}
    torch.save(dict(model=weights), tmp_path / 'released.pth')
    return tmp_path / 'released.pth'


def test_converts_and_initialises_by_config(tool, model, released, capsys):
    target = released.with_name('converted.pth')
    assert tool.main([str(released), str(target), '--arch', 'atto']) == 0
    assert f'{model} atto' in capsys.readouterr().out
    stored = torch.load(target, weights_only=True)
    assert stored['meta']['model'] == model
    assert stored['meta']['arch'] == 'atto'
    init_cfg = dict(
        type='Pretrained', checkpoint=str(target), prefix='backbone.'
    )
    backbone = MODELS.build(dict(type=model, arch='atto', init_cfg=init_cfg))
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, stored['state_dict'][f'backbone.{name}'])


def test_another_arch_is_refused(tool, released, capsys):
    target = released.with_name('converted.pth')
    assert tool.main([str(released), str(target), '--arch', 'tiny']) == 1
    assert 'holds atto (channels' in capsys.readouterr().err
    assert not target.exists()


def test_a_weight_that_is_not_there_is_told(tool, model, tmp_path, capsys):
    weights = dict(filled(CASES[model]))
    last = [k for k in weights if k.endswith('out_proj.weight')][0]
    del weights[last]
    torch.save(weights, tmp_path / 'a.pth')
    assert tool.main([str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')]) == 1
    assert 'missing: backbone.' in capsys.readouterr().err
