"""Checkpoints that a kill or a full disk cannot break."""

import os
from pathlib import Path

from mmengine.fileio import (
    LocalBackend,
    get_file_backend,
    register_backend,
)
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..whole_files import remove_parts, written_whole

BACKEND = 'atomic_local'


@register_backend(BACKEND, force=True)
class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, each written under another name first."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file; a reader finds it whole or not at all."""
        with written_whole(filepath) as part:
            part.write_bytes(obj)


class _LateRemoval(AtomicLocalBackend):
    """Removes files only when told that their successor is written."""

    def __init__(self) -> None:
        self.waiting: dict[str, int] = {}

    def remove(self, filepath: str | Path) -> None:
        self.waiting[str(filepath)] = os.stat(filepath).st_ino

    def remove_waiting(self) -> None:
        for path, inode in self.waiting.items():
            # Not what was written under the same name since.
            if os.path.isfile(path) and os.stat(path).st_ino == inode:
                os.remove(path)
        self.waiting.clear()


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which always leaves a whole checkpoint.

    A checkpoint is written under a temporary name and renamed, and what
    `max_keep_ckpts` or a better score replaces is deleted after that. A best
    checkpoint is found again in a work folder that was moved. Folders of
    remote storage are left to mmengine. The arguments are mmengine's.
    """

    def before_train(self, runner) -> None:
        """Choose how files are written."""
        local = self.file_client_args is None and isinstance(
            get_file_backend(
                self.out_dir or runner.work_dir, backend_args=self.backend_args
            ),
            LocalBackend,
        )
        if local:
            self.backend_args = dict(backend=BACKEND)
        self._follow_move(runner)
        super().before_train(runner)
        if local:
            self.file_backend = _LateRemoval()
            if runner.rank == 0:
                remove_parts(self.out_dir)

    def _follow_move(self, runner) -> None:
        """Look for the best checkpoints beside the others."""
        folder = Path(runner.work_dir)
        info = runner.message_hub.runtime_info
        for key in [key for key in info if key.startswith('best_ckpt')]:
            moved = folder / Path(str(info[key])).name
            if self.out_dir is None and moved.is_file():
                runner.message_hub.update_info(key, str(moved))

    def after_train_epoch(self, runner) -> None:
        """Save, then delete."""
        super().after_train_epoch(runner)
        self._remove_waiting()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Save, then delete."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        self._remove_waiting()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Save the best, then delete."""
        super().after_val_epoch(runner, metrics)
        self._remove_waiting()

    def _remove_waiting(self) -> None:
        if isinstance(self.file_backend, _LateRemoval):
            self.file_backend.remove_waiting()
