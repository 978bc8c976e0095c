"""Names of this package in the toolboxes, from an installed wheel."""

import os
import subprocess
import sys

import pytest

from ..test_packaging import installed, source, wheel  # noqa: F401  fixtures
from .released_files import save_released

SCRIPT = """
import sys
import torch
import evmamba_mm
from mmengine.config import Config
from mmdet.apis import DetInferencer
from mmpretrain import get_model, list_models
from mmseg.apis import MMSegInferencer

assert evmamba_mm.__file__.startswith(sys.argv[1])
name = 'evmamba-tiny_16xb128-amp-300e_in1k'
assert name in list_models('evmamba')
bias = torch.load(sys.argv[2])['state_dict']['module.classifier.head.bias']
for pretrained in (True, sys.argv[2]):
    model = get_model(name, pretrained=pretrained)
    assert torch.equal(model.head.fc.bias, bias)
try:
    get_model(name.replace('tiny', 'small'), pretrained=sys.argv[2])
except RuntimeError as error:
    assert 'of another shape' in str(error), error
    print('refused')

det = 'retinanet_evmamba-tiny_fpn_8xb2-1x_coco'
seg = 'upernet_evmamba-tiny_4xb4-160k_ade20k-512x512'
for kind, name in (DetInferencer, det), (MMSegInferencer, seg):
    print(type(kind(name, device='cpu').model.backbone).__name__)
try:
    DetInferencer('no-such-model', device='cpu')
except ValueError as error:
    print(error)

open('mine.py', 'w').write(f"_base_ = 'evmamba_mm::mmdet/{det}.py'")
print(Config.fromfile('mine.py').model.type)
"""


def test_names_are_known_to_the_toolboxes(installed, tmp_path):  # noqa: F811
    for host in ('mmpretrain', 'mmdet', 'mmseg'):
        pytest.importorskip(host, reason=f'{host} is not installed')
    # Where the first use of the name would have put the file.
    path = tmp_path / 'hub' / 'checkpoints' / 'evmamba-tiny_in1k.pth'
    path.parent.mkdir(parents=True)
    save_released(path, 'tiny', 1000)
    result = subprocess.run(
        [sys.executable, '-c', SCRIPT, installed, path],
        cwd=tmp_path,
        env={
            **os.environ,
            'PYTHONPATH': str(installed),
            'TORCH_HOME': str(tmp_path),
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert 'refused' in lines
    assert lines.count('EfficientVMamba') == 2
    assert 'Cannot find model: no-such-model in mmdet' in lines
    assert lines[-1] == 'RetinaNet'
