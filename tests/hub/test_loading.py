"""Released files loaded as they are, wherever mmengine loads weights."""

import argparse
import logging
import shutil

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from evmamba_mm import EfficientVMamba
from evmamba_mm.backbones import Vim, VMamba
from evmamba_mm.hub.loading import translate

from ..test_checkpoint import released_like
from .released_files import released_weights, save_released


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp('released') / 'released.ckpt'
    return path, save_released(path)


class Classifier(nn.Module):
    """A host's classifier, as far as its keys go."""

    def __init__(self, arch='atto'):
        super().__init__()
        self.backbone = EfficientVMamba(arch)
        self.head = nn.Module()
        self.head.fc = nn.Linear(128, 10)


def holds(model, weights):
    stem = model.patch_embed.conv.weight
    norm = model.norm3.weight
    return torch.equal(stem, weights['patch_embed.0.weight']) and torch.equal(
        norm, weights['classifier.norm.weight']
    )


def test_init_cfg_takes_a_released_file(released):
    path, weights = released
    config = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    model = EfficientVMamba('atto', init_cfg=config)
    model.init_weights()
    assert holds(model, weights)


def test_a_model_takes_a_released_file(released):
    path, weights = released
    model = Classifier()
    load_checkpoint(model, str(path), strict=True)
    assert holds(model.backbone, weights)
    assert torch.equal(model.head.fc.bias, weights['classifier.head.bias'])


def test_a_library_that_forgets_what_is_safe_changes_nothing(released):
    path, weights = released
    # As timm does around each file that it loads.
    with torch.serialization.safe_globals([argparse.Namespace]):
        pass
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    model = Classifier()
    load_checkpoint(model, str(path), strict=True)
    assert holds(model.backbone, weights)


def test_a_url_takes_a_released_file(released, monkeypatch, tmp_path):
    path, weights = released
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(
        'torch.hub.download_url_to_file',
        lambda url, target, progress: shutil.copy(path, target),
    )
    loaded = CheckpointLoader.load_checkpoint('https://host/a.ckpt')
    assert 'head.fc.weight' in loaded['state_dict']


def test_a_state_dict_in_hand_is_translated(released, caplog):
    weights = released[1]
    model = EfficientVMamba('atto')
    model.load_state_dict(weights)
    assert holds(model, weights)
    model = Classifier()
    inner = {f'backbone.{k}': v for k, v in weights.items()}
    model.load_state_dict(inner, strict=False)
    assert holds(model.backbone, weights)


def test_own_layouts_are_left_alone():
    for model in (EfficientVMamba('atto'), VMamba('atto'), Vim('atto')):
        state = model.state_dict()
        assert translate(state, 'a.pth') is state
        named = dict(state_dict={f'backbone.{k}': v for k, v in state.items()})
        assert translate(named, 'a.pth') is named
    for other in ([], {}, dict(state_dict={}), dict(model=3)):
        assert translate(other, 'a.pth') is other


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda w: w.update({'norm3.bias': torch.zeros(3)}), '1 of another'),
        (lambda w: w.update({'stem.0': w.pop('norm3.bias')}), None),
        (lambda w: w.update({'x': w.pop('patch_embed.conv.bias')}), '1 miss'),
    ],
    ids=['reshaped', 'norm', 'renamed'],
)
def test_wrong_weights_are_refused_by_mmengine_too(tmp_path, change, reason):
    weights = EfficientVMamba('atto').state_dict()
    change(weights)
    path = tmp_path / 'a.pth'
    torch.save({f'backbone.{k}': v for k, v in weights.items()}, path)
    if reason is None:
        load_checkpoint(Classifier(), str(path))
        return
    with pytest.raises(RuntimeError, match=f"at 'backbone'.*{reason}"):
        load_checkpoint(Classifier(), str(path))


def test_a_file_of_another_model_is_refused(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(
        {'conv1.weight': torch.zeros(3), 'fc.bias': torch.ones(2)}, path
    )
    with pytest.raises(RuntimeError, match='these are not the weights'):
        load_checkpoint(Classifier(), str(path))


def test_a_part_may_be_loaded_without_strictness():
    model = EfficientVMamba('atto')
    before = model.norm3.weight.clone()
    bias = torch.full_like(model.norm3.bias, 2)
    model.load_state_dict({'norm3.bias': bias}, strict=False)
    assert torch.equal(model.norm3.bias, bias)
    assert torch.equal(model.norm3.weight, before)


def test_a_peer_of_the_release_is_translated(tmp_path):
    weights = released_weights('atto')
    assert 'backbone.norm3.weight' in translate(weights, 'a')['state_dict']
    assert released_like(EfficientVMamba('atto')).keys() < weights.keys()


def test_init_weights_logs_a_line(caplog):
    logger = logging.getLogger('evmamba_mm')
    logger.addHandler(caplog.handler)
    try:
        EfficientVMamba('atto').init_weights()
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = caplog.messages
    assert line.startswith('EfficientVMamba: ') and 'at random' in line
