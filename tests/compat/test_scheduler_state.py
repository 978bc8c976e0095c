"""Schedules whose state holds functions."""

import torch
from mmengine.optim import OneCycleLR

from evmamba_mm.weight_files import read_weights


def schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return optimizer, OneCycleLR(optimizer, eta_max=1.0, total_steps=9)


def test_a_one_cycle_goes_on_from_a_checkpoint(tmp_path):
    optimizer, first = schedule()
    optimizer.step()
    first.step()
    state = dict(
        param_schedulers=[first.state_dict()], state_dict=dict(a=torch.ones(1))
    )
    torch.save(dict(state, meta={}), tmp_path / 'epoch_1.pth')
    other, second = schedule()
    stored = read_weights(tmp_path / 'epoch_1.pth')['param_schedulers'][0]
    second.load_state_dict(stored)
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other):
        each.step()
    for each in (first, second):
        each.step()
    rates = [each.param_groups[0]['lr'] for each in (optimizer, other)]
    assert rates[0] == rates[1] != 0.1
