"""What a training costs: by measured iterations, and how far that is right."""

import importlib
import re
from pathlib import Path

import pytest

from ..tools.test_train_test import TOOLS, load_tool

ROOT = TOOLS.parent
TINY = 'evmamba-tiny_16xb128-amp-300e_in1k.py'
BASE = 'evmamba-base_16xb64-amp-300e_in1k.py'


@pytest.fixture
def room(monkeypatch):
    """Gives a module of the paper's workshop."""
    monkeypatch.syspath_prepend(TOOLS / 'paper')
    return importlib.import_module


@pytest.fixture
def cost(room):
    return room('reproducing.cost')


def test_measured_iteration_times_the_iterations(cost):
    found = cost.cost_of(TINY)
    assert found.iterations == round(1281167 * 300 / 128)
    assert found.ms == pytest.approx(14.72)
    assert found.hours == pytest.approx(found.iterations * 0.01472 / 3600)
    assert found.basis == 'measured: h200_iteration.csv'


def test_a_part_or_a_wait_for_files_is_not_the_iteration(
    cost, tmp_path, monkeypatch
):
    lines = ['model,mode,phase,ms', 'a,config,forward,1']
    lines += ['a,config loader,iteration,9', 'a,config,iteration,5']
    (tmp_path / 'rows.csv').write_text('\n'.join(lines))
    monkeypatch.setattr(cost, 'BENCHMARK', tmp_path)
    assert cost.timed('a', 'rows') == 5
    assert cost.timed('b', 'rows') is None


def test_larger_models_cost_more_and_are_said_to_be_scaled(cost):
    small, base, ablation, detector = map(
        cost.cost_of,
        (
            TINY.replace('tiny', 'small'),
            BASE,
            TINY.replace('tiny', 'tiny-ss2d'),
            'mask-rcnn_evmamba-base_fpn_8xb2-amp-1x_coco.py',
        ),
    )
    assert cost.cost_of(TINY).hours < small.hours < base.hours
    assert small.basis == base.basis == cost.cost_of(TINY).basis
    assert 'by FLOPs' in ablation.basis
    assert 'standard heads, graph' in detector.basis
    assert detector.iterations == round(117266 * 12 / 2)


def test_the_smaller_recipe_of_tiny_is_not_measured(cost):
    paper = cost.cost_of('evmamba-tiny_16xb64-amp-paper-300e_in1k.py')
    assert 'Runner' in paper.basis
    assert paper.hours > cost.cost_of(TINY).hours


@pytest.mark.parametrize(
    'config',
    [
        'retinanet-std_evmamba-small_fpn_8xb2-1x_coco.py',
        'upernet_evmamba-base_4xb4-160k_ade20k-512x512.py',
        'peers/regnety-800mf_16xb128-amp-300e_in1k.py',
    ],
)
def test_what_was_not_timed_has_no_cost(config, cost):
    assert cost.cost_of(config) is None
    assert cost.line_of(config, cost.DEVICE).endswith('was not measured')


def test_names_say_what_the_configs_do(cost, room):
    """Batch, length and canvases are those that the Runner reads."""
    for host in ('mmdet', 'mmpretrain'):
        pytest.importorskip(host, reason=f'{host} is not installed')
    read = room('reproducing.plan').read_config
    for name in (
        f'mmpretrain/{TINY}',
        f'mmpretrain/{BASE}',
        'mmdet/mask-rcnn_evmamba-small_fpn_8xb2-amp-1x_coco.py',
        'mmdet/mask-rcnn_evmamba-small_fpn_8xb2-amp-ms-crop-3x_coco.py',
    ):
        cfg = read(str(ROOT / 'configs' / name))
        found = cost.cost_of(name)
        images = cost.IMAGES[name.rpartition('_')[2].removesuffix('.py')]
        batches = images / cfg.train_dataloader.batch_size
        assert found.iterations == round(batches * cfg.train_cfg.max_epochs)
        hooks = {hook['type'] for hook in cfg.get('custom_hooks', [])}
        assert ('CUDAGraphHook' in hooks) == ('eager' not in found.basis)


def test_prediction_beside_what_was_measured(room):
    ratios = {}
    for what, _, measured, predicted in room('writing.costs').checks():
        ratios[what] = measured / predicted
        print(f'{what}: {ratios[what]:.2f}')
    steps = [ratio for what, ratio in ratios.items() if 'step' in what]
    assert len(steps) == 4
    assert all(0.93 < ratio < 1.08 for ratio in steps)
    # Their share of a GPU holds what the prediction leaves out.
    shared = [ratio for what, ratio in ratios.items() if 'Tiny' in what]
    assert len(shared) == 6
    assert all(1 < ratio < 2 for ratio in shared)


def test_other_device_is_told(cost):
    here = cost.line_of(BASE, cost.DEVICE)
    assert re.match(
        r'training: about 3\d GPU hours on one NVIDIA H200, 3\.9 hours on 8 '
        r'\(measured: h200_iteration\.csv',
        here,
    )
    assert here.endswith('--cfg-options')
    there = cost.line_of(BASE, 'NVIDIA A100-SXM4-80GB')
    assert there == f'{here}; this machine has NVIDIA A100-SXM4-80GB'


@pytest.mark.parametrize('dry', [True, False])
def test_told_before_the_training(dry, monkeypatch, tmp_path, capsys):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    monkeypatch.chdir(tmp_path)
    main = load_tool('paper/reproduce', monkeypatch).main
    commands = importlib.import_module('reproducing.commands')
    for folder in ('train', 'val'):
        Path(folder).mkdir()

    def stop(command):
        raise ValueError(f'not run: {command[1]}')

    monkeypatch.setattr(commands, 'run', stop)
    arguments = ['--table=2', '--row=EfficientVMamba-B', '--train']
    arguments += ['--data-root=.', '--results=out', '--gpus=1']
    assert main(arguments + ['--dry-run'] * dry) == (0 if dry else 2)
    said, wrong = capsys.readouterr()
    assert 'training: about 3' in said
    if dry:
        told = said.index('training: about')
        assert told < said.index('tools/train.py')
    else:
        assert 'not run' in wrong
    main([*arguments[:2], '--data-root=.', '--dry-run'])
    assert 'training:' not in capsys.readouterr().out
