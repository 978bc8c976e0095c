"""A newcomer's path: the wheel, and the uses that README shows.

Outside of the checkout, in processes that import the installed wheel.
"""

import os
import subprocess

import pytest

from ..test_packaging import installed, source, wheel  # noqa: F401  fixtures
from .follow import ROOT, put_photo_and_weights
from .page import read_blocks

STEP = """
import sys

import torch
import evmamba_mm
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

assert evmamba_mm.__file__.startswith(sys.argv[2]), evmamba_mm.__file__
config = Config.fromfile(sys.argv[1])
# The weights are on a page that no test can download from.
config.model.backbone.pop('init_cfg')
for name in ('decode_head', 'auxiliary_head'):
    if name in config.model:
        config.model[name].channels = 16
init_default_scope(config.default_scope)
model = revert_sync_batchnorm(MODELS.build(config.model)).train()
model.init_weights()
wrapper = build_optim_wrapper(model, config.optim_wrapper)
if config.default_scope == 'mmdet':
    from mmdet.testing._utils import demo_mm_inputs

    data = demo_mm_inputs(2, [[3, 96, 128]] * 2, with_mask=True)
else:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 64).long())
    images = [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2
    data = dict(inputs=images, data_samples=[sample] * 2)
data = model.data_preprocessor(data, True)
loss, _ = model.parse_losses(model(**data, mode='loss'))
wrapper.backward(loss)
wrapper.step()
unused = [
    name
    for name, p in model.named_parameters()
    if p.requires_grad and p.grad is None and name.startswith('backbone')
]
print('trained' if loss.isfinite() else loss, *unused)
"""


@pytest.mark.parametrize(
    ('name', 'host'),
    [
        ('my_detector.py', 'mmdet'),
        ('my_segmentor.py', 'mmseg'),
        ('in_python.py', None),
    ],
)
def test_use_of_readme_runs_by_the_wheel(
    name,
    host,
    installed,  # noqa: F811
    tmp_path,
    libraries_python,
):
    if host:
        pytest.importorskip(host, reason=f'{host} is not installed')
    blocks = {
        block.file_name: block.text
        for block in read_blocks(ROOT / 'README.md')
        if block.language == 'python'
    }
    (tmp_path / name).write_text(blocks[name])
    (tmp_path / 'step.py').write_text(STEP)
    put_photo_and_weights(tmp_path)
    command = ['step.py', name, str(installed)] if host else [name]
    result = subprocess.run(
        [libraries_python.path, *command],
        cwd=tmp_path,
        env={
            **os.environ,
            'PYTHONPATH': str(installed),
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    if host:
        assert last == 'trained'
    else:
        assert f'\n    {last}\n' in (ROOT / 'README.md').read_text()
