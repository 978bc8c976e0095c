"""Checkpoints are whole, and the old ones are deleted last."""

import shutil
from pathlib import Path

import pytest
from mmengine.hooks import Hook

from evmamba_mm import AtomicCheckpointHook  # noqa: F401
from evmamba_mm.hooks.atomic_checkpoint import AtomicLocalBackend
from evmamba_mm.weight_files import read_weights

from .test_exact_resume import Runner, config


class Watch(Hook):
    """Notes what lies in the folder whenever a checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def before_save_checkpoint(self, runner, checkpoint):
        files = sorted(path.name for path in Path(runner.work_dir).glob('*'))
        self.seen.append([n for n in files if n.endswith('.pth')])


def test_successor_is_written_before_the_old_one_goes(tmp_path):
    cfg = config(tmp_path, workers=0)
    cfg.default_hooks.checkpoint = dict(
        type='AtomicCheckpointHook', interval=1, max_keep_ckpts=1
    )
    cfg.train_cfg.max_epochs = 3
    runner = Runner.from_cfg(cfg)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    assert watch.seen == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_3.pth']
    assert not [*tmp_path.glob('.*')]


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    AtomicLocalBackend().put(b'old', path)

    def full(self, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='No space left'):
        AtomicLocalBackend().put(b'new', path)
    assert path.read_bytes() == b'old'
    assert [*tmp_path.iterdir()] == [path]


def test_best_checkpoint_is_replaced_in_a_moved_folder(tmp_path):
    work, moved = tmp_path / 'work', tmp_path / 'moved'
    cfg = config(work, workers=0)
    cfg.train_cfg.max_epochs = 1
    Runner.from_cfg(cfg).train()
    (best,) = work.glob('best_*.pth')
    shutil.move(work, moved)
    cfg = config(moved, workers=0)
    cfg.default_hooks.checkpoint['rule'] = 'less'
    cfg.update(resume=True, load_from=str(moved / 'epoch_1.pth'))
    runner = Runner.from_cfg(cfg)
    # Whatever comes is better.
    runner.train()
    kept = [path.name for path in moved.glob('best_*.pth')]
    assert len(kept) == 1
    for path in moved.glob('*.pth'):
        read_weights(path)
    assert not work.exists()
    assert best.name
