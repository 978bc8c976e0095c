import json

import pytest
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from evmamba_mm import FlatDistributedDataParallel

from ..compat.processes import run_python


def test_it_is_registered():
    name = 'FlatDistributedDataParallel'
    assert MODEL_WRAPPERS.get(name) is FlatDistributedDataParallel


@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    """What the first of two processes prints."""
    store = tmp_path_factory.mktemp('flat') / 'store'
    command = ('-m', 'tests.optim.flat_processes', store)
    outcome = run_python(*command, environment=dict(OMP_NUM_THREADS='1'))
    return [json.loads(line) for line in outcome.lines()]


@pytest.mark.parametrize('how', ['each', 'accumulated', 'thawed'])
def test_two_processes_train_as_with_the_usual_wrapper(printed, how):
    """Clipped, in two dtypes and layouts, beside a frozen parameter.

    Or one that is thawed, which the usual wrapper learns of too late.
    """
    found = {name: rest for name, *(done, *rest) in printed if done == how}
    assert len(set(found['usual'][0])) == 6
    for flat, usual in zip(found['flat'], found['usual'], strict=True):
        assert flat == pytest.approx(usual, rel=1e-5)


def test_a_layer_is_frozen_while_gradients_are_accumulated(printed):
    """Then both processes have the same weights, and it keeps its own."""
    (losses,) = (line[2] for line in printed if line[1] == 'frozen')
    assert len(set(losses)) == 6


def test_a_mean_of_large_gradients_is_finite(printed):
    assert ['large', 40_000, 40_000] in printed


def test_a_parameter_without_a_gradient_is_named(printed):
    kind, message = printed[-1]
    assert kind == 'unused'
    assert 'the first is extra: freeze what the loss' in message
    assert 'find_unused_parameters=True' in message


def test_options_that_it_has_not_are_refused():
    with pytest.raises(ValueError, match='no argument .find_unused_parameter'):
        FlatDistributedDataParallel(
            nn.Linear(1, 1), find_unused_parameters=True
        )
