"""Keeps the workers of a loader until their training ends.

Breaks: a scheduler sends SIGTERM to all processes of a job. It ends the
loader's workers, and with them the iteration after which the training would
have written its checkpoint.
Fix: in workers of loaders that the Runner builds, SIGTERM and SIGUSR1 count
only if the training itself sends them, as multiprocessing does, or is gone.
Programs that a worker starts have both blocked.
Remove when workers of torch leave signals to the training.
"""

import atexit
import functools
import multiprocessing
import os
import signal
import threading
import weakref
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
        training = multiprocessing.parent_process()
        threading.Thread(
            target=_end_with, args=(training,), daemon=True
        ).start()
        if self.own is not None:
            self.own(worker_id)


def _end_with(training: multiprocessing.process.BaseProcess) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != training.pid:
        if not training.is_alive():
            break
    os._exit(0)


_started: weakref.WeakSet[multiprocessing.process.BaseProcess]
_started = weakref.WeakSet()


@functools.cache
def _end_started_at_exit() -> None:
    # Before multiprocessing, which waits for them: one that is stuck in code
    # that holds the interpreter's lock would not hear its signal.
    atexit.register(_end_started)


def _end_started() -> None:
    alive = [worker for worker in _started if worker.is_alive()]
    for worker in alive:
        worker.terminate()
    for worker in alive:
        worker.join(1)
        if worker.is_alive():
            # Torch would complain of its end.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            worker.kill()


class DataLoader(data.DataLoader):
    """Torch's loader, whose workers start with the signals blocked."""

    def __iter__(self) -> Iterator:
        if not self.num_workers or self._iterator is not None:
            # None starts: persistent ones are there.
            return super().__iter__()
        context = self.multiprocessing_context or multiprocessing
        if context.get_start_method() != 'fork':
            # Its start would unblock SIGTERM.
            resource_tracker.ensure_running()
        own = self.worker_init_fn
        self.worker_init_fn = _StartOfWorker(own)
        others = set(multiprocessing.active_children())
        # What a process or thread starts inherits its mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.worker_init_fn = own
            _started.update({*multiprocessing.active_children()} - others)
            _end_started_at_exit()


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
