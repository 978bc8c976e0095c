"""reproduce.py, from data to result, on small data sets.

The scores mean nothing; that they come out, and beside which cell, is tested.
"""

import importlib
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from evmamba_mm.cli import launch

from ..tools.test_train_test import TOOLS, load_tool

CONFIGS = TOOLS.parent / 'configs'
TINY = 'mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'


@pytest.fixture
def main(monkeypatch, tmp_path, warm_python):
    """The tool's main(), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'executable', str(warm_python.path))
    return load_tool('paper/reproduce', monkeypatch).main


SMALL = (
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'test_dataloader.dataset.indices=4',
    'model.backbone.arch=atto',
    'model.backbone.init_cfg=None',
)
CLASSIFIER = (*SMALL[:-1], 'model.head.in_channels=128')
RETINANET = (
    *SMALL,
    'test_dataloader.dataset.pipeline.1.scale=(64,64)',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'val_dataloader.dataset.indices=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_dataloader.dataset.indices=4',
    'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    'val_dataloader.dataset.pipeline.1.scale=(64,64)',
    'model.neck.in_channels=[32,64,128]',
    'model.backbone.norm_eval=False',
    # So short a training finds nothing, of which the host has no score.
    'model.test_cfg.score_thr=0.0',
    'train_cfg.max_epochs=1',
)
UPERNET = (
    *SMALL[:2],
    *SMALL[3:],
    'test_dataloader.dataset.pipeline.1.scale=(64,64)',
    *(f'tta_pipeline.1.transforms.0.{i}.scale=(64,64)' for i in range(6)),
    'model.decode_head.in_channels=[16,32,64,128]',
    'model.decode_head.channels=16',
    'model.auxiliary_head.in_channels=64',
    'model.auxiliary_head.channels=16',
)


@pytest.fixture
def unpacked(data_dir, tmp_path):
    def unpack(name):
        with tarfile.open(data_dir / f'{name}.tar') as archive:
            archive.extractall(tmp_path, filter='data')
        return tmp_path / name

    return unpack


def random_weights(config, options, monkeypatch):
    """A checkpoint of a config's model as it is at first."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    cfg = Config.fromfile(CONFIGS / config)
    cfg.merge_from_dict(launch.parse_options(list(options)))
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmpretrain':
        cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), 'random.pth')
    return 'random.pth'


def shrink(folder):
    """Makes images and maps of labels a quarter as wide and high."""
    for path in (*folder.rglob('*.jpg'), *folder.rglob('*.png')):
        with Image.open(path) as image:
            small = image.resize(
                [side // 4 for side in image.size], Image.Resampling.NEAREST
            )
        small.save(path)


def measured_in(table):
    measured = importlib.import_module('reproducing.measured')
    return measured.read(Path('out', f'table{table}.csv'))


def test_classifier_on_a_sample_of_imagenet(main, unpacked, monkeypatch):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    checkpoint = random_weights(TINY, CLASSIFIER, monkeypatch)
    root = unpacked('imagenet_sample')
    monkeypatch.setenv('EVMAMBA_IMAGENET', str(root))
    arguments = [f'--checkpoint={checkpoint}', '--results=out', '--gpus=1']
    arguments += ['--cfg-options', *CLASSIFIER]
    assert main(['--table=2', '--row=EfficientVMamba-T', *arguments]) == 0
    (line,) = measured_in(2)
    assert 0 <= float(line['measured']) <= 100
    assert float(line['measured']) % 25 == 0
    found = [line[key] for key in ('paper', 'tolerance', 'verdict', 'images')]
    assert found == ['76.5', '0.4', 'other data', '250']
    assert 'model.backbone.arch=atto' in line['options']


def test_detector_is_trained_and_tested_on_a_little_of_coco(main, unpacked):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    root = unpacked('coco_tiny')
    arguments = ['--table=3', '--row=EfficientVMamba-S', '--train']
    arguments += [f'--data-root={root}', '--results=out', '--gpus=1']
    assert main([*arguments, '--cfg-options', *RETINANET]) == 0
    lines = measured_in(3)
    assert [line['metric'] for line in lines] == [
        *('ap', 'ap50', 'ap75', 'ap_s', 'ap_m', 'ap_l')
    ]
    assert {line['paper'] for line in lines} >= {'39.1', '60.3', '51.3'}
    assert {line['verdict'] for line in lines} == {'other data'}
    assert {line['weights'] for line in lines} == {'epoch_1.pth'}


def test_segmentor_at_one_and_at_several_scales(main, unpacked, monkeypatch):
    pytest.importorskip('mmseg', reason='mmseg is not installed')
    config = 'mmseg/upernet_evmamba-tiny_4xb4-160k_ade20k-512x512.py'
    checkpoint = random_weights(config, UPERNET, monkeypatch)
    arguments = ['--table=4', '--row=EfficientVMamba-T', '--results=out']
    arguments += [f'--checkpoint={checkpoint}', '--gpus=1']
    root = unpacked('ade_tiny')
    shrink(root)
    arguments.append(f'--data-root={root}')
    assert main([*arguments, '--cfg-options', *UPERNET]) == 0
    lines = measured_in(4)
    found = {line['metric']: line['paper'] for line in lines}
    assert found == dict(miou_ss='38.9', miou_ms='39.3')
    assert {line['images'] for line in lines} == {'3'}
    assert {line['verdict'] for line in lines} == {'other data'}


def test_command_that_fails_is_told(main, unpacked, capsys):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    Path('broken.pth').write_text('no weights')
    arguments = ['--table=2', '--row=5', '--checkpoint=broken.pth']
    arguments.append(f'--data-root={unpacked("imagenet_sample")}')
    assert main([*arguments, '--results=out', '--gpus=1']) == 2
    message = 'broken.pth is a text file, not a checkpoint'
    assert message in capsys.readouterr().err
    assert not [*Path('out').rglob('*.csv')]
