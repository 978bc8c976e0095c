"""The figure of what trained detectors and segmentors predict."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from PIL import Image

from ..tools.test_train_test import TOOLS


@pytest.fixture
def predictions(monkeypatch):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    monkeypatch.syspath_prepend(TOOLS / 'paper')
    return importlib.import_module('drawing.predictions')


def test_first_finished_training_is_drawn(predictions, tmp_path):
    for name in ('tiny-10', 'tiny-2', 'tiny-scratch-0', 'tiny-x'):
        (tmp_path / 'bccd' / name).mkdir(parents=True)
        (tmp_path / 'bccd' / name / 'last_checkpoint').write_text('a.pth')
    (tmp_path / 'bccd' / 'tiny-0').mkdir()
    assert predictions.trained('bccd', 'tiny', tmp_path).seed == 2
    with pytest.raises(ValueError, match='holds no finished resnet18'):
        predictions.trained('bccd', 'resnet18', tmp_path)


def test_image_is_the_middle_one_by_its_objects(
    predictions, tmp_path, monkeypatch
):
    counts = {3: 5, 4: 0, 7: 2}
    stored = dict(
        images=[dict(id=i, file_name=f'{i}.png') for i in counts],
        annotations=[
            dict(image_id=i, bbox=[0, 1, 2, 3], category_id=2)
            for i, count in counts.items()
            for _ in range(count)
        ],
    )
    (tmp_path / 'test.json').write_text(json.dumps(stored))
    prefix = SimpleNamespace(img='images/')
    dataset = SimpleNamespace(ann_file='test.json', data_prefix=prefix)
    monkeypatch.setattr(
        predictions, 'images_of', lambda training: (dataset, tmp_path)
    )
    path, objects = predictions.middle_image(None)
    assert path == tmp_path / 'images' / '7.png'
    assert objects == [(0, 1, 2, 3, None, 1)] * 2


def test_objects_are_outlined(predictions, tmp_path):
    from matplotlib.figure import Figure

    instances = InstanceData(
        bboxes=torch.tensor([[1.0, 2, 5, 8], [0, 0, 2, 2]]),
        scores=torch.tensor([0.9, 0.4]),
        labels=torch.tensor([1, 0]),
        masks=torch.zeros(2, 10, 12, dtype=torch.bool),
    )
    instances.masks[0, 2:8, 1:5] = True
    ((*box, mask, label),) = predictions.found(
        SimpleNamespace(pred_instances=instances)
    )
    assert (box, mask.sum(), label) == ([1, 2, 4, 6], 24, 1)
    Image.new('RGB', (12, 10)).save(tmp_path / 'image.png')
    axis = Figure().subplots()
    objects = [(*box, mask, label), (*box, None, 0)]
    predictions.show_objects(axis, tmp_path / 'image.png', objects, 'ours')
    assert axis.get_title() == 'ours: 2'
    (rectangle,) = axis.patches
    assert (*rectangle.get_xy(), rectangle.get_width()) == (1, 2, 4)
    (contour,) = axis.collections
    outline = np.concatenate([path.vertices for path in contour.get_paths()])
    assert (outline.min(0), outline.max(0)) == (
        pytest.approx([0.5, 1.5]),
        pytest.approx([4.5, 7.5]),
    )
