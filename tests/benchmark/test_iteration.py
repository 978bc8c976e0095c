"""The benchmark of an iteration: what it does, never how fast it is."""

import os
import subprocess

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from evmamba_mm.benchmark import batches, iteration, rows, stopwatch
from evmamba_mm.config_files import read_config

from .tool import ROOT, SCRIPT, run

for host in ('mmdet', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')

CPU = torch.device('cpu')
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='is for a CPU')


def changed(toy, **loader):
    """The toy with changes to its loader."""
    config = read_config(toy)
    config.train_dataloader.update(loader)
    path = toy.with_name('changed.py')
    config.dump(path)
    return path


@on_cpu
def test_iteration_has_a_time_and_parts(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(iteration, 'WARM_UP', 1)
    file = tmp_path / 'rows.csv'
    arguments = ('--random', 32, '--repeats', 2, '--csv', file)
    assert run('iteration', toy, *arguments) == 0
    found = rows.read(file)
    assert [x['phase'] for x in found] == list(stopwatch.PHASES)
    assert all(float(x['ms']) > 0 for x in found)
    assert {x['size'] for x in found} == {'32x32'}
    assert {x['batch'] for x in found} == {'2'}
    assert {x['mode'] for x in found} == {'config'}
    # The log's file is gone, but its logger is still the current one.
    MMLogger.get_current_instance().error('nothing opens the file')
    # The config does not ask for it.
    assert not torch.backends.cudnn.benchmark


@on_cpu
def test_iteration_of_two_processes(toy, tmp_path, warm_python):
    file = tmp_path / 'rows.csv'
    command = [warm_python.path, '-m', 'torch.distributed.run']
    command += ['--standalone', '--nproc-per-node', '2', SCRIPT, 'iteration']
    command += [toy, '--random', '32', '--repeats', '2', '--csv', file]
    subprocess.run(
        [*map(str, command)],
        env=os.environ | dict(PYTHON_EXEC=str(warm_python.path)),
        check=True,
        timeout=300,
    )
    found = rows.read(file)
    assert [x['phase'] for x in found] == list(stopwatch.PHASES)
    assert {x['batch'] for x in found} == {'4'}


@on_cpu
@pytest.mark.parametrize('workers', [0, 1])
def test_iteration_from_files(
    workers, toy, class_folders, tmp_path, monkeypatch
):
    """An epoch is two batches, or lasts as long as the workers."""
    monkeypatch.setattr(iteration, 'WARM_UP', 1)
    toy = changed(toy, num_workers=0, prefetch_factor=None)
    file = tmp_path / 'rows.csv'
    arguments = ['--loader', '--data', class_folders, '--repeats', 2]
    if workers:
        arguments += ['--workers', workers]
    assert run('iteration', toy, *arguments, '--csv', file) == 0
    found = rows.read(file)
    assert [x['phase'] for x in found] == list(stopwatch.PHASES)
    assert {x['mode'] for x in found} == {'config loader'}
    assert {(x['batch'], x['size']) for x in found} == {('2', '224x224')}
    assert 'iteration, config loader' in rows.markdown(found, 'ms')


def test_noise_comes_from_no_loader(toy, capsys):
    arguments = ('--random', 32, '--loader', '--device', 'cpu')
    assert run('iteration', toy, *arguments) == 2
    assert 'leave out either --random or' in capsys.readouterr().err


@on_cpu
def test_a_training_that_fails_is_not_tried_again(toy, monkeypatch, capsys):
    tried = []

    def train(*arguments):
        tried.append(arguments[-1])
        raise RuntimeError('broken')

    monkeypatch.setattr(iteration, 'train', train)
    assert run('iteration', toy, '--random', 32) == 1
    assert tried == [False]
    assert capsys.readouterr().err.count('broken') == 1


def test_window_outlasts_what_is_loaded_before(toy):
    config = read_config(toy)
    config.train_dataloader.update(num_workers=3)
    of = iteration.Window.of
    warm = iteration.WARM_UP
    assert of(config, 20, False) == iteration.Window(warm, warm + 20)
    # Three workers make two batches each.
    assert of(config, 20, True) == iteration.Window(warm + 12, warm + 60)
    assert of(config, 50, True) == iteration.Window(warm + 12, warm + 62)
    config.train_dataloader.update(num_workers=0)
    assert of(config, 20, True) == iteration.Window(warm, warm + 20)
    # Whole steps of the optimizer.
    config.optim_wrapper.accumulative_counts = 8
    assert of(config, 20, False) == iteration.Window(warm, warm + 24)


@on_cpu
def test_only_whole_steps_are_timed(toy, monkeypatch):
    """The last iteration of a training is a step, whatever its number."""
    monkeypatch.setattr(iteration, 'WARM_UP', 1)
    steps, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, 'step', lambda *a: steps.append(1) or step(*a)
    )
    config = read_config(toy)
    config.optim_wrapper.accumulative_counts = 4
    config.dump(toy)
    assert run('iteration', toy, '--random', 32, '--repeats', 8) == 0
    # Ten iterations, whole and in parts.
    assert len(steps) == 2 * 2


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (dict(train_dataloader=None), 'train_dataloader has no batch_size'),
        (dict(optim_wrapper=None), 'has no optim_wrapper'),
        (
            dict(optim_wrapper=dict(accumulative_counts=0)),
            'accumulative_counts must be a positive integer, got 0',
        ),
    ],
)
def test_a_config_that_does_not_train_is_refused(change, why, toy, capsys):
    config = read_config(toy)
    config.merge_from_dict(change)
    config.dump(toy)
    assert run('iteration', toy, '--random', 32) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert why in line


def test_noise_needs_a_number_of_classes(toy):
    config = read_config(toy)
    config.model.head.pop('num_classes')
    config.dump(toy)
    with pytest.raises(ValueError, match='model.head.num_classes'):
        iteration.Source(32).batches(toy, CPU)


def test_a_small_data_set_lasts(toy, class_folders):
    config = iteration.Source(folder=str(class_folders)).config(toy)
    settings = config.train_dataloader
    with DefaultScope.overwrite_default_scope(config.default_scope):
        for images, length in ((3, 4), (4, 4), (5, 8), (41, 44)):
            settings.num_workers = 2
            assert len(batches.lasting(settings, images)['dataset']) == length
    # Nothing waits at the end of an epoch.
    settings.num_workers = 0
    assert batches.lasting(settings, 41) is settings


def test_too_few_images_for_a_batch(toy, class_folders):
    toy = changed(toy, batch_size=5, num_workers=0)
    source = iteration.Source(folder=str(class_folders))
    with pytest.raises(ValueError, match='too few images for a batch of 5'):
        source.batches(toy, CPU)


@on_cpu
def test_mixed_precision_needs_a_gpu(capsys):
    config = 'configs/mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'
    arguments = ('--random', 32, '--device', 'cpu')
    assert run('iteration', ROOT / config, *arguments) == 2
    assert 'a GPU; on a CPU give a config' in capsys.readouterr().err


def test_batches_come_in_the_same_order(toy, class_folders):
    toy = changed(toy, num_workers=0, persistent_workers=False)
    source = iteration.Source(folder=str(class_folders))
    first, second = (
        [batch['gt_label'] for batch in source.batches(toy, CPU)] for _ in '12'
    )
    assert len(first) == 2
    torch.testing.assert_close(first, second)


def test_noise_is_for_classifiers():
    config = (
        ROOT / 'configs/mmseg/upernet_evmamba-tiny_4xb4-160k_ade20k-512x512.py'
    )
    with pytest.raises(ValueError, match='random images serve configs of'):
        iteration.Source(32).batches(config, CPU)
