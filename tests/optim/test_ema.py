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


def test_weights_and_modules_that_were_replaced_are_averaged():
    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    average = ForeachExponentialMovingAverage(source, momentum=0.5)
    average.update_parameters(source)
    start = average.module.state_dict()
    source[0] = nn.Linear(2, 2)
    source[1].weight = nn.Parameter(torch.ones(2, 2))
    expected = {
        name: (start[name] + x) / 2 for name, x in source.state_dict().items()
    }
    average.update_parameters(source)
    for name, x in average.module.state_dict().items():
        torch.testing.assert_close(x, expected[name])
