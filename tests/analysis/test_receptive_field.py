"""The effective receptive field, against kernels that are known."""

import numpy as np
import pytest
import torch
from torch import nn

from evmamba_mm.analysis import receptive_field


class Toy(nn.Module):
    """A host's model as far as the receptive field goes."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def data_preprocessor(self, batch, training):
        return dict(inputs=torch.stack(batch['inputs']).float())


class Sample:
    def clone(self):
        return self

    def set_metainfo(self, metainfo):
        pass


def box_filter(side):
    conv = nn.Conv2d(3, 2, side, padding=side // 2)
    nn.init.ones_(conv.weight)
    return conv


def test_gradient_of_a_convolution_is_its_kernel():
    image = torch.ones(3, 17, 13)
    field = receptive_field.measure(
        Toy(box_filter(5)), [(image, Sample()), (2 * image, Sample())], -1
    )
    expected = np.zeros((17, 13))
    # Three colours, and two channels of the unit.
    expected[6:11, 4:9] = 3 * 2
    np.testing.assert_allclose(field.gradient, expected)
    assert (field.images, field.channels) == (2, 2)
    assert field.centre == (0.5, 0.5)


class NormedToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        y = self.conv(x).permute(0, 2, 3, 1)
        return (self.norm(y).permute(0, 3, 1, 2),)


def test_layer_norm_at_the_end_leaves_a_gradient():
    torch.manual_seed(0)
    image = torch.rand(3, 9, 9)
    field = receptive_field.measure(Toy(NormedToken()), [(image, Sample())], 0)
    assert field.gradient[3:6, 3:6].min() > 1e-4
    assert field.gradient[0, 0] == 0


@pytest.mark.parametrize('stage', [2, -3])
def test_map_that_is_not_returned_is_refused(stage):
    maps = (torch.ones(1, 1, 2, 2),) * 2
    with pytest.raises(ValueError, match='returns 2 maps, so that -2 to 1'):
        receptive_field.choose(maps, stage)


def test_boxes_hold_their_share():
    even = np.ones((100, 100))
    field = receptive_field.Field(even, 1, 1, 5, 5)
    (quarter, most) = receptive_field.share_boxes(field, [0.25, 0.81])
    assert receptive_field.area(quarter) == pytest.approx(0.25, abs=0.02)
    assert receptive_field.area(most) == pytest.approx(0.81, abs=0.02)
    with pytest.raises(ValueError, match='0 everywhere'):
        nothing = receptive_field.Field(0 * even, 1, 1, 5, 5)
        receptive_field.share_boxes(nothing, [0.5])
