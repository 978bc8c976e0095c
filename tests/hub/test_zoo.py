"""Names of this package in the toolboxes, from an installed wheel."""

import os
import subprocess
import sys

import pytest

from ..test_packaging import installed, source, wheel  # noqa: F401  fixtures

CLASSIFIER = """
import torch
import evmamba_mm
from tests.hub.released_files import save_released
from mmpretrain import get_model, list_models

name = 'evmamba-tiny_16xb128-amp-300e_in1k'
assert name in list_models('evmamba')
weights = save_released('tiny.ckpt', 'tiny', 1000)
model = get_model(name, pretrained='tiny.ckpt')
assert torch.equal(model.head.fc.bias, weights['classifier.head.bias'])
try:
    get_model(name.replace('tiny', 'small'), pretrained='tiny.ckpt')
except RuntimeError as error:
    assert 'of another shape' in str(error), error
    print('refused')
"""
INFERENCER = """
import evmamba_mm
from {host}.apis import {kind}

inferencer = {kind}('{name}', device='cpu')
print(type(inferencer.model.backbone).__name__)
"""
BASE = """
from mmengine.config import Config
import evmamba_mm

name = 'evmamba_mm::mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
open('mine.py', 'w').write(f'_base_ = {name!r}')
print(Config.fromfile('mine.py').model.backbone.type)
"""


def run(code, folder, site):
    paths = [str(site), os.getcwd()]
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(paths),
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def test_get_model_by_name(installed, tmp_path):  # noqa: F811
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    assert run(CLASSIFIER, tmp_path, installed) == 'refused'


@pytest.mark.parametrize(
    ('host', 'kind', 'name'),
    [
        (
            'mmdet',
            'DetInferencer',
            'retinanet_evmamba-tiny_fpn_8xb2-1x_coco',
        ),
        (
            'mmseg',
            'MMSegInferencer',
            'upernet_evmamba-tiny_4xb4-160k_ade20k-512x512',
        ),
    ],
)
def test_inferencers_by_name(
    host,
    kind,
    name,
    installed,  # noqa: F811
    tmp_path,
):
    pytest.importorskip(host, reason=f'{host} is not installed')
    code = INFERENCER.format(host=host, kind=kind, name=name)
    assert run(code, tmp_path, installed) == 'EfficientVMamba'


def test_a_config_inherits_from_the_package(installed, tmp_path):  # noqa: F811
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    # An installed package, as pip would leave it.
    info = installed / 'evmamba_mm-0.1.0.dist-info'
    assert info.is_dir()
    assert run(BASE, tmp_path, installed) == 'EfficientVMamba'
