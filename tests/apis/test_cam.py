"""Grad-CAM finds a patch planted in an image, without a reshape_transform.

A linear head is set so that its second class asks for the patch.
"""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from evmamba_mm import EfficientVMamba

from ..test_rooms import ROOT

INSTALL = 'it comes by pip install "grad-cam<1.5"'
pytest.importorskip('pytorch_grad_cam', reason=INSTALL)

# Rows and columns of the patch, on the 7x7 cells of the last feature map.
ROWS, COLUMNS = slice(32, 96), slice(128, 192)
CELLS = slice(1, 3), slice(4, 6)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = EfficientVMamba('atto')
        self.fc = nn.Linear(128, 2)

    def forward(self, image):
        return self.fc(self.backbone(image)[-1].mean((2, 3)))


@pytest.fixture(scope='module')
def planted():
    """An image (224, 224, 3) of uint8, and a classifier for its patch."""
    torch.manual_seed(0)
    image = np.full((224, 224, 3), 128, np.uint8)
    noise = torch.randint(0, 256, (64, 64, 3)).numpy()
    image[ROWS, COLUMNS] = noise
    model = Classifier().eval()
    model.backbone.init_weights()
    with torch.no_grad():
        (maps,) = model.backbone(tensor(image))[0]
        inside = torch.zeros(7, 7, dtype=torch.bool)
        inside[CELLS] = True
        direction = maps[:, inside].mean(1) - maps[:, ~inside].mean(1)
        model.fc.weight.copy_(torch.stack([-direction, direction]))
        model.fc.bias.zero_()
    return image, model


def tensor(image):
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    return ((pixels - 128) / 64).unsqueeze(0)


def assert_on_patch(cam):
    row, column = np.unravel_index(cam.argmax(), cam.shape)
    assert ROWS.start <= row < ROWS.stop, (row, column)
    assert COLUMNS.start <= column < COLUMNS.stop, (row, column)
    # The patch is 8 % of the image.
    assert cam[ROWS, COLUMNS].sum() > 0.4 * cam.sum()


@pytest.mark.parametrize('layer', ['norm3', 'stages.3.0', 'stages.2.0'])
def test_grad_cam_is_on_the_patch(layer, planted):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    image, model = planted
    target = model.backbone.get_submodule(layer)
    cam = GradCAM(model=model, target_layers=[target])
    (found,) = cam(tensor(image), [ClassifierOutputTarget(1)])
    assert_on_patch(found)


def test_vis_cam_of_mmpretrain_is_on_the_patch(planted, tmp_path):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    image, model = planted
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    keys = {'fc.': 'head.fc.', 'backbone.': 'backbone.'}
    weights = {
        new + key.removeprefix(old): value
        for key, value in model.state_dict().items()
        for old, new in keys.items()
        if key.startswith(old)
    }
    torch.save(weights, tmp_path / 'weights.pth')
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'evmamba_mm.run'),
            *('mmpretrain/visualization/vis_cam.py', 'image.png'),
            *(str(ROOT / 'tests/toy_classifier.py'), 'weights.pth'),
            *('--target-category', '1', '--save-path', 'cam.png'),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'PYTHONPATH': os.pathsep.join(
                [str(ROOT), os.environ.get('PYTHONPATH', '')]
            ),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # JET over the image: red is hot, blue is cold.
    blue, _, red = np.moveaxis(cv2.imread(str(tmp_path / 'cam.png')), 2, 0)
    assert_on_patch(np.maximum(red.astype(float) - blue, 0))
