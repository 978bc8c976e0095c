"""tools/misc/demo.py as a newcomer runs it, cut short."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
SHORT = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1')
FEW = (
    'train_dataloader.dataset.indices=16',
    'val_dataloader.dataset.indices=8',
)


def run(*arguments, python=sys.executable):
    """Returns the exit status and all that was printed."""
    result = subprocess.run(
        [
            python,
            str(ROOT / 'tools' / 'misc' / 'demo.py'),
            *map(str, arguments),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'PYTHONPATH': str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    'task, toolbox, printed',
    [
        ('det', 'mmdet', ['box AP50', 'mask AP50']),
        ('seg', 'mmseg', ['mIoU (%)']),
        ('cls', 'mmpretrain', ['top-1 (%)']),
    ],
    ids=['det', 'seg', 'cls'],
)
def test_short_run_trains_evaluates_and_draws(
    task, toolbox, printed, tmp_path, warm_python
):
    pytest.importorskip(toolbox, reason=f'{toolbox} is not installed')
    # One by itself, as a newcomer starts it.
    python = sys.executable if task == 'cls' else warm_python.path
    status, output = run(
        *('--task', task, '--device', 'cpu'),
        *('--work-dir', tmp_path, '--cfg-options', *SHORT, *FEW),
        python=python,
    )
    assert status == 0, output
    for name in printed:
        assert name in output.rpartition('Held-out images')[2]
    sheet = cv2.imread(str(tmp_path / task / 'held_out.png'))
    assert sheet.shape == (966, 1452, 3)
    assert sheet.std() > 10
    assert cv2.imread(str(tmp_path / task / 'curves.png')) is not None


def test_gpu_is_not_promised_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    status, output = run('--device', 'cuda', '--work-dir', tmp_path)
    assert status == 2
    assert 'torch sees no GPU' in output
