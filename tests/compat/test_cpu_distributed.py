import json
import re
import socket
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from evmamba_mm import compat
from evmamba_mm.compat import cpu_distributed

from .processes import run_python

TINY_RUN = Path(__file__).with_name('tiny_run.py')
NO_GPU = {'CUDA_VISIBLE_DEVICES': ''}


def torchrun(python, count, *arguments):
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    launcher = ('-m', 'torch.distributed.run', '--master-port', port)
    return run_python(
        *launcher,
        '--nproc-per-node',
        count,
        TINY_RUN,
        *arguments,
        '--launcher',
        'pytorch',
        environment=NO_GPU,
        warm=python,
    )


def test_processes_do_not_start_without_the_mend(tmp_path, libraries_python):
    outcome = torchrun(libraries_python, 1, tmp_path)
    outcome.assert_fault('NVIDIA driver', 'No CUDA', 'not compiled with CUDA')


def test_two_processes_train_one_model(tmp_path, libraries_python):
    outcome = torchrun(libraries_python, 2, tmp_path, '--mend')
    text = '\n'.join(outcome.lines())
    # Both write to one stream, and may end up on one line.
    starts = [match.start() for match in re.finditer(r'\{"rank"', text)]
    decode = json.JSONDecoder().raw_decode
    reports = [decode(text, start)[0] for start in starts]
    assert sorted(report['rank'] for report in reports) == [0, 1]
    for report in reports:
        assert report['on_cpu_dist'] is True
        assert report['wrapper'] == 'MMDistributedDataParallel'
        assert report['world_size'] == 2
        # Each sees half of the eight samples, two at a time, in two epochs.
        assert (report['epoch'], report['iterations']) == (2, 4)
        assert report['weights'][0] == report['weights'][1]
    first, second = (report['mean_loss'] for report in reports)
    assert first != second
    checkpoint = torch.load(tmp_path / 'epoch_2.pth')
    saved = checkpoint['state_dict']['layer.weight'].flatten().tolist()
    # EMAHook saves its average as the weights, the model's beside it.
    trained = checkpoint['ema_state_dict']['module.layer.weight']
    assert reports[0]['weights'][0] in (saved, trained.flatten().tolist())


@pytest.fixture
def no_gpu(monkeypatch):
    """The group counts as started, so that nothing has to be joined."""
    monkeypatch.setattr(cpu_distributed, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)


def test_one_process_is_left_alone(no_gpu):
    cfg = Config(dict(model=dict(type='SyncBN')))
    assert compat.init_cpu_dist(cfg, 'none') is False
    assert cfg.to_dict() == dict(model=dict(type='SyncBN'))


def test_gpu_is_left_to_mmengine(monkeypatch):
    monkeypatch.setattr(cpu_distributed, 'get_device', lambda: 'cuda')
    cfg = Config(dict(model=dict(type='SyncBN')))
    assert compat.init_cpu_dist(cfg, 'pytorch') is False
    assert 'model_wrapper_cfg' not in cfg


def test_own_wrapper_and_unused_parameters_are_kept(no_gpu):
    cfg = Config(dict(find_unused_parameters=True))
    assert compat.init_cpu_dist(cfg, 'pytorch') is True
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert cfg.model_wrapper_cfg.device_ids is None
    own = dict(type='MMSeparateDistributedDataParallel')
    cfg = Config(dict(model_wrapper_cfg=own))
    compat.init_cpu_dist(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg == dict(own, device_ids=None)


def test_timeout_of_the_config_is_used(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu_distributed, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: False)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 1)
    monkeypatch.setattr(
        torch.distributed,
        'init_process_group',
        lambda backend, timeout: calls.append((backend, timeout)),
    )
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(timeout=90))))
    compat.init_cpu_dist(cfg, 'pytorch')
    compat.init_cpu_dist(Config(dict()), 'pytorch')
    (first, second) = calls
    assert first[0] == 'gloo' and first[1].total_seconds() == 90
    assert second == ('gloo', None)


def test_other_launcher_is_refused(no_gpu):
    with pytest.raises(ValueError, match="launcher is 'slurm'.*'pytorch'"):
        compat.init_cpu_dist(Config(dict()), 'slurm')


@pytest.mark.parametrize(
    'cfg, place',
    [
        (
            dict(model=dict(norm_cfg=dict(type='SyncBN'))),
            "model.norm_cfg.type='SyncBN'",
        ),
        (
            dict(model=dict(heads=[dict(), dict(type='mmcv.MMSyncBN')])),
            r"model.heads\[1\].type='mmcv.MMSyncBN'",
        ),
        (
            dict(model=dict(norm=dict(type=torch.nn.SyncBatchNorm))),
            "model.norm.type='SyncBatchNorm'",
        ),
        (dict(sync_bn='torch'), "sync_bn is 'torch'"),
    ],
    ids=['norm_cfg', 'in-list', 'class', 'sync_bn'],
)
def test_sync_bn_is_refused_with_its_place(no_gpu, cfg, place):
    with pytest.raises(ValueError, match=place):
        compat.init_cpu_dist(Config(cfg), 'pytorch')


def test_torch_has_no_sync_bn_for_the_cpu(no_gpu):
    """The fault behind the refusal, which shows in a group only."""
    try:
        torch.nn.SyncBatchNorm(3)(torch.rand(2, 3, 4, 4))
    except ValueError as error:
        assert 'GPU' in str(error)
    else:
        pytest.skip('this torch has SyncBN for the CPU')
