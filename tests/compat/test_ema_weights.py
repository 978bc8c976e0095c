"""A training starts from a checkpoint that has an average of the weights."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import evmamba_mm  # noqa: F401  makes the fixes


def classifier(classes):
    return nn.ModuleDict(
        dict(backbone=nn.Linear(4, 3), head=nn.Linear(3, classes))
    )


def started(model, checkpoint, resume=False):
    """The average that mmpretrain's hook makes of a checkpoint."""
    hooks = pytest.importorskip('mmpretrain.engine.hooks')
    hook = hooks.EMAHook(momentum=0.1)
    runner = SimpleNamespace(model=model, _resume=resume)
    hook.before_run(runner)
    hook.after_load_checkpoint(runner, checkpoint)
    return hook.ema_model.module


@pytest.fixture
def checkpoint():
    """Of three classes, as the hook saves it."""
    average, weights = classifier(3), classifier(3)
    beside = {f'module.{k}': v for k, v in weights.state_dict().items()}
    beside['steps'] = torch.tensor(5)
    return dict(state_dict=average.state_dict(), ema_state_dict=beside)


def test_average_of_the_same_model_is_taken(checkpoint, package_log):
    expected = copy.deepcopy(checkpoint['state_dict'])
    average = started(classifier(3), checkpoint)
    for key, value in average.state_dict().items():
        assert torch.equal(value, expected[key])
    assert 'average' not in package_log.text


@pytest.mark.parametrize('case', ['no head', 'other head'])
def test_another_head_starts_anew(case, checkpoint, package_log):
    model = classifier(3 if case == 'no head' else 5)
    if case == 'no head':
        for name in ('weight', 'bias'):
            del checkpoint['state_dict'][f'head.{name}']
    own = copy.deepcopy(model.head.state_dict())
    expected = copy.deepcopy(checkpoint['state_dict'])
    average = started(model, checkpoint)
    # mmengine then loads what is left into the model itself.
    assert checkpoint['state_dict'].keys() == expected.keys()
    for name in ('weight', 'bias'):
        key = f'backbone.{name}'
        assert torch.equal(checkpoint['state_dict'][key], expected[key])
        assert torch.equal(average.state_dict()[key], expected[key])
        assert torch.equal(average.head.state_dict()[name], own[name])
    (record,) = package_log.records
    assert 'another head.weight' in record.getMessage()


def test_resumed_training_needs_its_own_average(checkpoint):
    del checkpoint['state_dict']['head.weight']
    with pytest.raises(KeyError):
        started(classifier(3), checkpoint, resume=True)
