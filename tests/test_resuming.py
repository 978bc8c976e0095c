"""Which checkpoint a training goes on from."""

import importlib
import os
import shutil

import pytest
import torch

from evmamba_mm.resuming import newest_checkpoint
from evmamba_mm.weight_files import BrokenWeightsError, read_weights


def save(folder, name, iteration, time='20260101_000000', **more):
    folder.mkdir(exist_ok=True)
    meta = dict(epoch=1, iter=iteration, time=time)
    weights = dict(a=torch.ones(100))
    torch.save(
        dict(meta=meta, state_dict=weights, message_hub={}, **more),
        folder / name,
    )
    (folder / 'last_checkpoint').write_text(str(folder / name))
    return folder / name


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / 'work'
    for epoch in (1, 2, 10):
        save(folder, f'epoch_{epoch}.pth', epoch)
    return folder


def test_newest_is_taken_without_a_word(work):
    assert newest_checkpoint(work) == (work / 'epoch_10.pth', [])


@pytest.mark.parametrize('left', [0, 10, 500, -30])
def test_broken_newest_gives_way_to_the_one_before(work, left):
    last = work / 'epoch_10.pth'
    last.write_bytes(last.read_bytes()[:left])
    found, (note,) = newest_checkpoint(work)
    assert found == work / 'epoch_2.pth'
    assert str(last) in note
    assert f'resuming from {found}' in note


@pytest.mark.parametrize(
    'pointer, what',
    [
        (None, 'is not there'),
        (b'', 'is empty or garbled'),
        (b'\0\xff', 'is empty or garbled'),
        (b'gone/epoch_7.pth', 'names gone/epoch_7.pth, which is not there'),
    ],
    ids=['missing', 'empty', 'garbled', 'elsewhere'],
)
def test_what_names_the_newest_is_broken(work, pointer, what):
    (work / 'last_checkpoint').unlink()
    if pointer is not None:
        (work / 'last_checkpoint').write_bytes(pointer)
    found, (note,) = newest_checkpoint(work)
    assert found == work / 'epoch_10.pth'
    assert what in note


def test_moved_folder(work, tmp_path):
    moved = tmp_path / 'moved'
    shutil.move(work, moved)
    found, (note,) = newest_checkpoint(moved)
    assert found == moved / 'epoch_10.pth'
    assert 'which is not there' in note


def test_time_counts_before_the_number(work):
    # A second training in the folder of an old, longer one.
    later = save(work, 'epoch_3.pth', 3, time='20260102_000000')
    assert newest_checkpoint(work) == (later, [])
    # It was renamed, and a kill came before it was named.
    (work / 'last_checkpoint').write_text(str(work / 'epoch_2.pth'))
    assert newest_checkpoint(work)[0] == later


def test_checkpoints_in_another_folder(work, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    (work / 'last_checkpoint').rename(other / 'last_checkpoint')
    assert newest_checkpoint(other) == (work / 'epoch_10.pth', [])


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_pipes_are_no_checkpoints(work):
    os.mkfifo(work / 'epoch_11.pth')
    path, notes = newest_checkpoint(work)
    assert path == work / 'epoch_10.pth'
    assert 'epoch_11.pth is a pipe' in ' '.join(notes)
    with pytest.raises(BrokenWeightsError, match='is a pipe'):
        read_weights(work / 'epoch_11.pth')


@pytest.mark.parametrize('kind', ['link', 'folder'])
def test_what_is_no_file_is_not_passed_over_in_silence(tmp_path, kind):
    path = tmp_path / 'epoch_3.pth'
    if kind == 'link':
        path.symlink_to(tmp_path / 'a_disk_that_is_gone' / 'epoch_3.pth')
    else:
        path.mkdir()
    with pytest.raises(BrokenWeightsError, match='no checkpoint in .* loads'):
        newest_checkpoint(tmp_path)


def test_nothing_was_saved(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])


def test_nothing_loads(work):
    for path in work.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(BrokenWeightsError, match='no checkpoint in .* loads'):
        newest_checkpoint(work)
    for path in work.glob('*.pth'):
        path.unlink()
    with pytest.raises(BrokenWeightsError, match='names .*epoch_10.pth, and'):
        newest_checkpoint(work)


def test_best_checkpoint_is_none_to_resume(tmp_path):
    save(tmp_path, 'best_acc_epoch_3.pth', 3)
    (tmp_path / 'last_checkpoint').unlink()
    with pytest.raises(BrokenWeightsError, match='nothing but best_acc'):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize('pointer', [True, False])
def test_mere_weights_of_a_training_are_not_passed_over(tmp_path, pointer):
    weights = dict(state_dict=dict(a=torch.ones(2)))
    torch.save(weights, tmp_path / 'start.pth')
    assert newest_checkpoint(tmp_path) == (None, [])
    torch.save(weights, tmp_path / 'epoch_9.pth')
    if pointer:
        file = tmp_path / 'last_checkpoint'
        file.write_text(str(tmp_path / 'epoch_9.pth'))
    with pytest.raises(BrokenWeightsError, match='nothing but epoch_9.pth, '):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'module',
    [
        'mmengine.runner',
        'mmengine.runner.runner',
        'mmengine.runner._flexible_runner',
    ],
)
def test_every_runner_searches_so(module, work, package_log):
    search = importlib.import_module(module).find_latest_checkpoint
    (work / 'epoch_10.pth').write_bytes(b'')
    assert search(str(work)) == str(work / 'epoch_2.pth')
    assert 'epoch_10.pth is empty' in package_log.text
    (work / 'last_checkpoint').write_text(str(work))
    if module != 'mmengine.runner.runner':
        # In the format of a strategy a checkpoint is a folder.
        assert search(str(work)) == str(work)
