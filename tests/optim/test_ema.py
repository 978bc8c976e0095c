import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from evmamba_mm import ForeachExponentialMovingAverage


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).append(
        nn.Conv2d(4, 2, 1).half()
    )


@pytest.mark.parametrize('buffers', [True, False])
@pytest.mark.parametrize('interval', [1, 2])
def test_average_equals_the_stock_one(buffers, interval):
    source = model()
    options = dict(momentum=0.3, interval=interval, update_buffers=buffers)
    stock = ExponentialMovingAverage(source, **options)
    ours = ForeachExponentialMovingAverage(source, **options)
    for step in range(5):
        with torch.no_grad():
            for x in (*source.parameters(), *source.buffers()):
                x.add_(1) if not x.is_floating_point() else x.normal_()
        stock.update_parameters(source)
        ours.update_parameters(source)
        expected, actual = stock.state_dict(), ours.state_dict()
        assert expected.keys() == actual.keys()
        for name, x in expected.items():
            torch.testing.assert_close(actual[name], x, msg=f'{step} {name}')


def test_state_is_exchanged_with_the_stock_one():
    source = model()
    stock = ExponentialMovingAverage(source)
    stock.update_parameters(source)
    ours = ForeachExponentialMovingAverage(copy.deepcopy(source))
    ours.load_state_dict(stock.state_dict())
    assert ours.steps == 1


def test_average_of_a_subclass_is_used():
    class Last(ForeachExponentialMovingAverage):
        def avg_func(self, averaged_param, source_param, steps):
            averaged_param.copy_(source_param)

    source = nn.Linear(2, 2)
    average = Last(source)
    for _ in range(3):
        nn.init.normal_(source.weight)
        average.update_parameters(source)
    assert torch.equal(average.module.weight, source.weight)
