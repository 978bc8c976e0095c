"""The demo's configs build, learn from a batch and predict."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'mmdet': 'mask-rcnn_evmamba-atto_fpn_1xb8-8e_nuclei.py',
    'mmseg': 'upernet_evmamba-atto_1xb8-8e_nuclei-128x128.py',
    'mmpretrain': 'evmamba-atto_1xb16-15e_cells.py',
}


@pytest.fixture(params=CONFIGS)
def config(request, monkeypatch):
    """A config that reads its data in this process."""
    monkeypatch.chdir(ROOT)
    pytest.importorskip(
        request.param, reason=f'{request.param} is not installed'
    )
    path = ROOT / 'configs' / 'demo' / CONFIGS[request.param]
    config = Config.fromfile(path)
    for split in ('train', 'val'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
    init_default_scope(config.default_scope)
    return config


def test_loss_reaches_every_parameter_and_predicts(config):
    torch.manual_seed(0)
    preprocessor = config.get('data_preprocessor')
    if preprocessor is not None:
        config.model.setdefault('data_preprocessor', preprocessor)
    model = MODELS.build(config.model)
    model.init_weights()
    model.train()
    batch = next(iter(Runner.build_dataloader(config.train_dataloader)))
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total, parts = model.parse_losses(losses)
    assert all(value.isfinite().all() for value in parts.values())
    total.backward()
    unreached = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert unreached == []

    model.eval()
    loader = Runner.build_dataloader(config.val_dataloader)
    with torch.no_grad():
        samples = model.val_step(next(iter(loader)))
    assert len(samples) == 4


@pytest.mark.parametrize('name', CONFIGS.values(), ids=CONFIGS)
def test_schedule_in_the_name_is_the_one_that_runs(name):
    config = Config.fromfile(ROOT / 'configs' / 'demo' / name)
    epochs = config.train_cfg.max_epochs
    assert f'-{epochs}e_' in name
    assert config.param_scheduler[-1].end == epochs
    assert config.default_hooks.checkpoint.interval == epochs
    batch = config.train_dataloader.batch_size
    assert f'_1xb{batch}-' in name
    assert config.auto_scale_lr.base_batch_size == batch
    assert 'evmamba_mm' in config.custom_imports.imports
