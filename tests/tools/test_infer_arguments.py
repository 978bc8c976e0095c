"""The arguments of infer.py."""

import subprocess
import sys

import pytest
import torch

from .inference_cases import touch
from .test_train_test import TOOLS, load_tool


@pytest.fixture
def infer(monkeypatch):
    return load_tool('infer', monkeypatch)


@pytest.mark.parametrize(
    'wanted, gpus, expected',
    [
        ('auto', 0, 'cpu'),
        ('auto', 2, 'cuda'),
        ('cpu', 2, 'cpu'),
        ('cuda:1', 2, 'cuda:1'),
    ],
)
def test_device(wanted, gpus, expected, infer, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    assert infer.choose_device(wanted) == expected
    with pytest.raises(ValueError, match=f"'cuda:7', and torch sees {gpus}"):
        infer.choose_device('cuda:7')


def test_help_states_the_exit_status_and_imports_nothing_heavy():
    code = (
        'import runpy, sys, atexit\n'
        'atexit.register(lambda: print("cv2" in sys.modules,'
        ' "torch" in sys.modules))\n'
        f'sys.path[0], sys.argv = {str(TOOLS)!r}, ["tool", "-h"]\n'
        f'runpy.run_path({str(TOOLS / "infer.py")!r}, run_name="__main__")\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert 'exit status:\n  0  every input' in result.stdout
    assert result.stdout.split()[-2:] == ['False', 'False']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['none.py'], "CONFIG: there is no file 'none.py'"),
        ([__file__, 'none.pth'], "CHECKPOINT: there is no file 'none.pth'"),
        (['a.png', __file__], 'was INPUT a glob without quotes?'),
        ([__file__, '--batch-size', '0'], "'0' is not a positive integer"),
        ([__file__, '--device', 'gpu'], "'gpu' is none of auto, cpu"),
        ([__file__, '--score-thr', '30'], "'30' is not from 0 to 1"),
    ],
    ids=['config', 'checkpoint', 'glob', 'batch', 'device', 'score'],
)
def test_unusable_argument_is_refused(
    arguments, message, infer, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(touch(tmp_path, 'a.png'))
    with pytest.raises(SystemExit) as stop:
        infer.main(['a.png', *arguments])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err


def test_a_part_that_cannot_be_built_is_a_line(infer, tmp_path, monkeypatch):
    base = TOOLS.parent / 'configs/demo/evmamba-atto_1xb16-15e_cells.py'
    config = tmp_path / 'mine.py'
    config.write_text(
        f"_base_ = '{base}'\n"
        "model = dict(head=dict(_delete_=True, type='Foo'))\n"
    )
    monkeypatch.chdir(touch(tmp_path, 'a.png'))
    with pytest.raises(SystemExit, match='^error: Foo of the config cannot'):
        infer.main(['a.png', str(config), '--device', 'cpu'])
