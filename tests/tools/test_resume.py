"""Which file train.py resumes from, and what it says about that."""

import pytest
import torch
from mmengine.config import Config

from evmamba_mm.cli import resume
from evmamba_mm.weight_files import BrokenWeightsError


def save(path, **content):
    meta = dict(epoch=1, iter=3, time='20260101_000000', seed=7)
    weights = dict(a=torch.ones(9))
    whole = dict(meta=meta, state_dict=weights, message_hub={}, optimizer={})
    torch.save(whole | dict(param_schedulers=[]) | content, path)


def chosen(folder, **settings):
    cfg = Config(dict(work_dir=str(folder), resume=True, **settings))
    resume.choose_checkpoint(cfg)
    return cfg


def test_resume_finds_a_file_and_its_seed(tmp_path, package_log):
    save(tmp_path / 'epoch_1.pth')
    (tmp_path / 'epoch_2.pth').write_bytes(b'')
    cfg = chosen(tmp_path)
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth')
    assert cfg.randomness.seed == 7
    (record,) = package_log.records
    assert 'epoch_2.pth is empty (0 bytes)' in record.getMessage()


def test_flexible_runner_is_not_resumed(tmp_path):
    save(tmp_path / 'epoch_1.pth')
    with pytest.raises(ValueError, match='leave runner_type out'):
        chosen(tmp_path, runner_type='FlexibleRunner')


def test_resume_of_nothing_starts_from_the_beginning(tmp_path):
    cfg = chosen(tmp_path)
    assert not cfg.resume
    assert 'load_from' not in cfg


def test_file_to_resume_that_is_none(tmp_path, package_log):
    save(tmp_path / 'epoch_1.pth')
    broken, bare = tmp_path / 'a.pth', tmp_path / 'b' / 'b.pth'
    broken.write_bytes(b'<html>')
    with pytest.raises(BrokenWeightsError, match='web page.*epoch_1.pth load'):
        chosen(tmp_path, load_from=str(broken))
    bare.parent.mkdir()
    torch.save(dict(state_dict=dict(a=torch.ones(2))), bare)
    with pytest.raises(BrokenWeightsError, match='no state of a training'):
        chosen(tmp_path, load_from=str(bare))
    save(tmp_path / 'c.pth')
    content = torch.load(tmp_path / 'c.pth')
    del content['optimizer']
    torch.save(content, tmp_path / 'c.pth')
    package_log.clear()
    chosen(tmp_path, load_from=str(tmp_path / 'c.pth'))
    (record,) = package_log.records
    assert 'c.pth has no optimizer: it starts anew' in record.getMessage()


def test_what_a_resume_does_beside_the_config_is_told(tmp_path, package_log):
    path = str(tmp_path / 'a.pth')
    settings = dict(
        train_cfg=dict(max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.2)),
        param_scheduler=[dict(type='LinearLR', end=3)],
    )
    text = Config(settings).pretty_text
    state = dict(state={}, param_groups=[dict(betas=(0.9, 0.99))])
    meta = dict(epoch=1, iter=3, cfg=text.replace('0.2', '0.1'))
    save(tmp_path / 'a.pth', optimizer=state, meta=meta)
    settings['param_scheduler'].append(dict(type='CosineAnnealingLR'))
    chosen(tmp_path, load_from=path, **settings)
    said = [record.getMessage() for record in package_log.records]
    for line, part in zip(
        said,
        (
            'is of epoch 1, and train_cfg.max_epochs is 1: nothing is left',
            'has no state of the optimizer',
            'was trained with another optim_wrapper than',
            'was trained with another param_scheduler than',
        ),
        strict=True,
    ):
        assert line.startswith(path) and part in line


def test_resume_of_the_same_config_says_nothing(tmp_path, package_log):
    settings = dict(
        train_cfg=dict(max_epochs=9),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.2)),
        param_scheduler=None,
    )
    text = Config(settings).pretty_text
    meta = dict(epoch=1, iter=3, seed=3, cfg=text)
    save(tmp_path / 'a.pth', optimizer=dict(state={}), meta=meta)
    chosen(tmp_path, load_from=str(tmp_path / 'a.pth'), **settings)
    assert not package_log.records


OFF, ON, OTHER = (
    dict(base_batch_size=64),
    dict(base_batch_size=64, enable=True),
    dict(enable=True, base_batch_size=32),
)


@pytest.mark.parametrize(
    'before, after, told',
    [
        *((OFF, ON, True), (ON, OFF, True), (None, ON, True)),
        *((ON, OTHER, True), (ON, ON, False), (OFF, None, False)),
        (OFF, dict(OFF, enable=False), False),
    ],
)
def test_scaling_of_the_rate_that_differs_is_told(
    before, after, told, tmp_path, package_log
):
    text = Config(dict(auto_scale_lr=before)).pretty_text
    meta = dict(epoch=1, iter=3, seed=3, cfg=text)
    save(tmp_path / 'a.pth', meta=meta)
    path = str(tmp_path / 'a.pth')
    chosen(tmp_path, load_from=path, auto_scale_lr=after)
    said = [record.getMessage() for record in package_log.records]
    assert len(said) == told
    assert all('another auto_scale_lr (--auto-scale-lr)' in x for x in said)


@pytest.mark.parametrize('epoch', ['two', -5, float('nan'), None])
def test_epoch_that_is_no_number(epoch, tmp_path):
    save(tmp_path / 'a.pth', meta=dict(epoch=epoch, iter=3))
    with pytest.raises(BrokenWeightsError, match=r'no state.*meta\.epoch'):
        chosen(tmp_path, load_from=str(tmp_path / 'a.pth'))


def test_new_training_over_an_old_one_is_told(tmp_path, package_log):
    save(tmp_path / 'epoch_1.pth')
    resume.choose_checkpoint(Config(dict(work_dir=str(tmp_path))))
    (record,) = package_log.records
    assert 'epoch_1.pth is of an earlier training' in record.getMessage()
