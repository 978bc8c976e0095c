"""Stock tools of the toolboxes behind `python -m evmamba_mm.run`."""

import subprocess

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from evmamba_mm import run
from evmamba_mm.apis import build_predictor

from .compat.processes import run_python
from .test_rooms import ROOT

CONFIGS = ROOT / 'configs'


def test_a_script_gets_its_arguments_and_its_exit_status(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys, mmcv.ops\n'
        'print(__name__, sys.argv[0] == __file__, *sys.argv[1:])\n'
        'sys.exit(3)\n'
    )
    outcome = run_python('-m', 'evmamba_mm.run', script, '-a', 'b')
    assert outcome.code == 3, outcome.log
    assert outcome.out.splitlines()[-1] == '__main__ True -a b'


def test_a_tool_that_is_not_there(capsys):
    assert run.main(['mmdet/analysis_tools/none.py']) == 2
    assert 'no tool of that name' in capsys.readouterr().err
    assert run.main(['../x/y.py']) == 2
    assert run.main([]) == 2
    assert run.main(['--help']) == 0


def run_tool(python, *arguments):
    result = subprocess.run(
        [python, '-m', 'evmamba_mm.run', *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_get_flops_of_mmseg(warm_python):
    pytest.importorskip('mmseg', reason='mmseg is not installed')
    config = CONFIGS / 'mmseg/upernet_evmamba-tiny_4xb4-160k_ade20k-512x512.py'
    tool = 'mmseg/analysis_tools/get_flops.py'
    lines = run_tool(warm_python.path, tool, config, '--shape', '64', '64')
    assert any(line.startswith('Flops: ') for line in lines)


def test_visualization_cam_of_mmseg(tmp_path, warm_python):
    pytest.importorskip('mmseg', reason='mmseg is not installed')
    pytest.importorskip('pytorch_grad_cam', reason='grad-cam is missing')
    config = CONFIGS / 'demo/upernet_evmamba-atto_1xb8-8e_nuclei-128x128.py'
    model = build_predictor(Config.fromfile(config), 'cpu').model
    weights, cam = tmp_path / 'weights.pth', tmp_path / 'cam.png'
    torch.save(dict(state_dict=model.state_dict(), meta={}), weights)
    run_tool(
        *(warm_python.path, 'mmseg/analysis_tools/visualization_cam.py'),
        *(CONFIGS / 'demo/nuclei/images/val/0280fa8f60f6bcae.jpg', config),
        *(weights, '--target-layers', 'backbone.norm3', '--device', 'cpu'),
        *('--category-index', '1', '--cam-file', cam),
        *('--out-file', tmp_path / 'map.png'),
    )
    with Image.open(cam) as picture:
        assert picture.size == (256, 256)


def test_browse_dataset_of_mmdet(tmp_path, warm_python):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    config = CONFIGS / 'demo/mask-rcnn_evmamba-atto_fpn_1xb8-8e_nuclei.py'
    run_tool(
        *(warm_python.path, 'mmdet/analysis_tools/browse_dataset.py'),
        *(config, '--output-dir', tmp_path / 'out', '--not-show'),
        '--cfg-options',
        f'train_dataloader.dataset.data_root={CONFIGS / "demo/nuclei"}/',
        'train_dataloader.dataset.indices=2',
    )
    assert len(list((tmp_path / 'out').rglob('*.*'))) == 2
