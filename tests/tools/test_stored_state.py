"""Garbage in a stored state is refused by its file and key."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from evmamba_mm.cli import stored_state
from evmamba_mm.cli.weights import resume_strictly
from evmamba_mm.weight_files import BrokenWeightsError

NAN = float('nan')
GARBAGE = {
    'param_schedulers.0.last_step': 'three',
    'param_schedulers.0._last_value': 0.5,
    'param_schedulers.0.base_values.0': 'high',
    'param_schedulers.0._global_step': NAN,
    'param_schedulers.0': [1],
    'param_schedulers': 3,
    'optimizer.param_groups.0.lr': [0.1],
    'optimizer.param_groups.0.weight_decay': NAN,
    'optimizer.param_groups.0.eps': 1j,
    'optimizer.param_groups.0.betas': (),
    'optimizer.param_groups': 'none',
    'optimizer.state.0.step': 'four',
    'optimizer.state.0.exp_avg': 'low',
    'optimizer.state.0.exp_avg_sq': torch.tensor([NAN]),
    'optimizer.state.1.exp_avg': torch.tensor([1]),
    'optimizer.state.1.step': torch.tensor(NAN),
    'optimizer.state.1': 7,
    'message_hub.runtime_info': [],
    'message_hub.runtime_info.iter': 'five',
    'message_hub.runtime_info.best_score': 'high',
    'message_hub.log_scalars': 4,
    'meta.seed': 'seven',
    'meta.batches_done': [1],
}


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.layer(inputs).sum())


def collate(batch):
    return dict(inputs=torch.tensor(batch)[:, None])


def runner_of(folder, epochs, optimizer='AdamW'):
    return Runner(
        Toy(),
        str(folder),
        train_dataloader=dict(
            dataset=[1.0, 2.0],
            batch_size=1,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=collate,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type=optimizer, lr=1.0)),
        param_scheduler=[dict(type='LinearLR', begin=0, end=3)],
        experiment_name=f'{folder.name}-{epochs}',
    )


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    runner_of(folder, 1).train()
    return torch.load(folder / 'epoch_1.pth', weights_only=False)


def resume(folder, content):
    torch.save(content, folder / 'a.pth')
    runner = runner_of(folder, 2)
    resume_strictly(runner)
    runner._load_from, runner._resume = str(folder / 'a.pth'), True
    runner.train()
    return runner


@pytest.mark.parametrize('key, value', GARBAGE.items(), ids=map(str, GARBAGE))
def test_garbage_is_refused_by_name(key, value, checkpoint, tmp_path):
    content = copy.deepcopy(checkpoint)
    *places, last = key.split('.')
    node = content
    for place in places:
        node = node[int(place) if place.isdecimal() else place]
    node[int(last) if last.isdecimal() else last] = value
    with pytest.raises(BrokenWeightsError) as error:
        resume(tmp_path, content)
    said = str(error.value)
    assert said.startswith(f'{tmp_path / "a.pth"} cannot be resumed: {key} is')
    assert '\n' not in said


@pytest.mark.parametrize('rate', [None, -1.0, float('inf'), torch.ones(5)])
def test_a_rate_that_is_none_is_refused(rate, checkpoint, tmp_path):
    checkpoint = copy.deepcopy(checkpoint)
    checkpoint['optimizer']['param_groups'][0]['lr'] = rate
    with pytest.raises(BrokenWeightsError, match='param_groups.0.lr is'):
        resume(tmp_path, checkpoint)


def test_state_of_another_optimizer_is_refused(checkpoint, tmp_path):
    checkpoint = copy.deepcopy(checkpoint)
    del checkpoint['optimizer']['param_groups'][0]['betas']
    with pytest.raises(BrokenWeightsError, match='no betas: it is of another'):
        resume(tmp_path, checkpoint)


@pytest.mark.parametrize('change', ['to_sparse_csr', 'float8'])
def test_averages_that_cannot_say_what_is_nan(change):
    average = torch.ones(2, 1)
    if change == 'float8':
        average = average.to(torch.float8_e5m2)
    else:
        average = average.to_sparse_csr()
    assert not list(stored_state._of_average(average, 'exp_avg'))


def test_an_optimizer_may_keep_what_it_likes(checkpoint, tmp_path):
    checkpoint = copy.deepcopy(checkpoint)
    checkpoint['optimizer']['param_groups'][0]['weight_decay'] = False
    checkpoint['optimizer']['state'][0].update(
        size=torch.Size([3]), basis=[torch.ones(2), []], rule='mine', z=1j
    )
    assert resume(tmp_path, checkpoint).iter == 4


def test_an_optimizer_that_keeps_something_from_its_start(tmp_path):
    runner_of(tmp_path, 1, 'Adagrad').train()
    runner = runner_of(tmp_path, 2, 'Adagrad')
    resume_strictly(runner)
    runner._load_from = str(tmp_path / 'epoch_1.pth')
    runner._resume = True
    runner.train()
    assert runner.iter == 4


def test_good_state_is_resumed(checkpoint, tmp_path):
    checkpoint = copy.deepcopy(checkpoint)
    checkpoint['message_hub']['runtime_info']['best_score'] = float('-inf')
    assert resume(tmp_path, checkpoint).iter == 4
