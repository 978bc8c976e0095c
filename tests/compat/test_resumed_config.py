import json

import pytest
import torch
from mmengine.infer import BaseInferencer
from mmengine.runner import FlexibleRunner

import evmamba_mm  # noqa: F401  makes the fixes

from .processes import run_python
from .test_safe_loading import TINY_RUN


@pytest.fixture(scope='module')
def trained(tmp_path_factory, libraries_python):
    folder = tmp_path_factory.mktemp('run')
    run_python(TINY_RUN, folder, warm=libraries_python).lines()
    return folder / 'epoch_1.pth'


@pytest.fixture
def attack(trained, tmp_path):
    """A checkpoint that writes a file where it is resumed, and that file."""
    mark = tmp_path / 'mark'
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint['meta']['config'] = f'open({str(mark)!r}, "w").close()'
    torch.save(checkpoint, tmp_path / 'attack.pth')
    return tmp_path / 'attack.pth', mark


def test_config_of_a_checkpoint_is_not_run(attack, tmp_path, libraries_python):
    checkpoint, mark = attack
    outcome = run_python(
        *(TINY_RUN, tmp_path / 'resumed', '--mend', '--resume', checkpoint),
        warm=libraries_python,
    )
    report = json.loads(outcome.lines()[-1])
    assert (report['epoch'], report['iterations']) == (2, 8)
    assert "has a config under meta['config']" in outcome.out + outcome.log
    assert not mark.exists()


def test_flexible_runner_refuses_the_file(attack):
    checkpoint, mark = attack
    with pytest.raises(ValueError, match='would run as a program'):
        FlexibleRunner.resume(None, str(checkpoint))
    assert not mark.exists()


def test_inferencer_runs_no_config_of_a_checkpoint(attack):
    checkpoint, mark = attack
    loaded = torch.load(checkpoint, weights_only=True)
    program = loaded['meta']['config']
    loaded['meta']['cfg'] = program
    loaded['message_hub']['runtime_info']['cfg'] = program
    torch.save(loaded, checkpoint)
    inferencer = pytest.importorskip('mmdet.apis').DetInferencer
    assert issubclass(inferencer, BaseInferencer)
    with pytest.raises(ValueError, match='as a program; give the file of'):
        inferencer(weights=str(checkpoint), device='cpu')
    assert not mark.exists()
