"""The label that is written on a classifier's picture."""

import numpy as np
import pytest
import torch

import evmamba_mm  # noqa: F401

pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')

from mmpretrain.structures import DataSample
from mmpretrain.visualization import UniversalVisualizer

from evmamba_mm.apis.predictors import Classifier
from evmamba_mm.apis.weights import Meta


class Labelled(Classifier):
    """A classifier that only draws."""

    def __init__(self, name):
        self.visualizer = UniversalVisualizer()
        self.meta = Meta((name,), [(0, 0, 0)])


@pytest.mark.parametrize('size', [(120, 100), (300, 900), (1000, 700)])
def test_a_long_name_is_not_cut(size):
    classifier = Labelled('dragonfly, darning needle, ' * 5)
    sample = DataSample().set_pred_label(0).set_pred_score(torch.ones(1))
    picture = classifier.draw(np.zeros((*size, 3), np.uint8), sample)
    (text,) = classifier.visualizer.ax_save.texts
    box = text.get_window_extent()
    height, width = picture.shape[:2]
    assert min(height, width) >= 256
    assert 0 <= box.x0 < box.x1 <= width
    assert 0 <= box.y0 < box.y1 <= height
