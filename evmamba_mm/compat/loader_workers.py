"""Keeps the workers of a loader until their training ends.

Breaks: a scheduler sends SIGTERM to all processes of a job. It ends the
loader's workers, and with them the iteration after which the training would
have written its checkpoint.
Fix: in workers of loaders that the Runner builds, SIGTERM and SIGUSR1 count
only if the training itself sends them, as multiprocessing does at its end.
Programs that a worker starts have both blocked.
Remove when workers of torch leave signals to the training.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker

from mmengine.runner import Runner
from torch.utils import data

# macOS and Windows cannot tell who has sent a signal.
SERVED = hasattr(signal, 'sigwaitinfo')
SIGNALS = {signal.SIGTERM, signal.SIGUSR1} if SERVED else set()


@dataclass(frozen=True)
class _StartOfWorker:
    """Waits for the signals of a worker, then does what the loader had."""

    own: Callable[[int], None] | None

    def __call__(self, worker_id: int) -> None:
        training = multiprocessing.parent_process().pid
        waits = threading.Thread(
            target=_end_with, args=(training,), daemon=True
        )
        waits.start()
        if self.own is not None:
            self.own(worker_id)


def _end_with(training: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != training:
        pass
    os._exit(0)


class DataLoader(data.DataLoader):
    """Torch's loader, whose workers start with the signals blocked."""

    def __iter__(self) -> Iterator:
        if not self.num_workers:
            return super().__iter__()
        context = self.multiprocessing_context or multiprocessing
        if context.get_start_method() != 'fork':
            # Its start would unblock SIGTERM.
            resource_tracker.ensure_running()
        own = self.worker_init_fn
        self.worker_init_fn = _StartOfWorker(own)
        # What a process or thread starts inherits its mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.worker_init_fn = own


def apply() -> None:
    """Makes the Runner build such loaders."""
    stock = Runner.build_dataloader
    if not SERVED or stock.__module__ == __name__:
        return

    def build_dataloader(
        dataloader: data.DataLoader | dict,
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> data.DataLoader:
        loader = stock(dataloader, seed, diff_rank_seed)
        if type(loader) is data.DataLoader:
            loader.__class__ = DataLoader
        return loader

    Runner.build_dataloader = staticmethod(build_dataloader)
