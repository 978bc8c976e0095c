"""Keeps the workers of a loader until their training ends.

Breaks: a scheduler sends SIGTERM to all processes of a job. It ends the
loader's workers, and with them the iteration after which the training would
have written its checkpoint.
Fix: in workers of loaders that a Runner builds or is given, SIGTERM and
SIGUSR1 count only if the training itself sends them, as multiprocessing does,
or is gone. What a worker starts by subprocess or a fork hears them; what it
starts by os.system or os.posix_spawn does not.
Remove when workers of torch leave signals to the training.
"""

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import ParamSpec

from mmengine.runner import FlexibleRunner, Runner
from torch.utils import data

# macOS and Windows cannot tell who has sent a signal.
SERVED = hasattr(signal, 'sigwaitinfo')
SIGNALS = {signal.SIGTERM, signal.SIGUSR1} if SERVED else set()
_MARK = '_starts_with_signals_blocked'
# Ctrl-C waits as well: Python swallows it in a fork, and it is the training's.
BLOCKED = {*SIGNALS, signal.SIGINT}

P = ParamSpec('P')


@dataclass(frozen=True)
class _StartOfWorker:
    """Waits for the signals of a worker, then does what the loader had."""

    own: Callable[[int], None] | None

    def __call__(self, worker_id: int) -> None:
        training = multiprocessing.parent_process()
        threading.Thread(
            target=_end_with, args=(training,), daemon=True
        ).start()
        _spare_programs()
        if self.own is not None:
            self.own(worker_id)


def _end_with(training: multiprocessing.process.BaseProcess) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != training.pid:
        if not training.is_alive():
            break
    os._exit(0)


def _spare_programs() -> None:
    """Let programs that this worker starts hear the signals."""
    for number in BLOCKED:
        if signal.getsignal(number) != signal.SIG_IGN:
            # One that comes while a program starts does not end the worker.
            signal.signal(number, lambda number, frame: None)
    start = subprocess.Popen.__init__

    @functools.wraps(start)
    def start_hearing(*args: P.args, **kwargs: P.kwargs) -> None:
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        try:
            start(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    subprocess.Popen.__init__ = start_hearing
    os.register_at_fork(after_in_child=_hear)


def _hear() -> None:
    for number in BLOCKED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


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


@contextlib.contextmanager
def _workers_start(loader: data.DataLoader) -> Iterator[None]:
    context = loader.multiprocessing_context or multiprocessing
    if context.get_start_method() != 'fork':
        # Its start would unblock SIGTERM.
        resource_tracker.ensure_running()
    own = loader.worker_init_fn
    loader.worker_init_fn = _StartOfWorker(own)
    others = set(multiprocessing.active_children())
    # What a process or thread starts inherits its mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    try:
        yield
    finally:
        loader.worker_init_fn = own
        _started.update({*multiprocessing.active_children()} - others)
        _end_started_at_exit()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@functools.cache
def guarded(kind: type[data.DataLoader]) -> type[data.DataLoader]:
    """Return a class of loaders whose workers start with signals blocked."""
    if getattr(kind, _MARK, False):
        return kind

    # Not __iter__: that of a subclass may be a generator, which starts later.
    def start(self: data.DataLoader) -> Iterator:
        if not self.num_workers:
            return kind._get_iterator(self)
        with _workers_start(self):
            return kind._get_iterator(self)

    # It keeps its name, which messages tell.
    members = dict(_get_iterator=start, __module__=kind.__module__)
    return type(kind.__name__, (kind,), {**members, _MARK: True})


def apply() -> None:
    """Makes loaders of the Runners such loaders."""
    for runner in (Runner, FlexibleRunner):
        if SERVED and runner.build_dataloader.__module__ != __name__:
            build = _guarding(runner.build_dataloader)
            runner.build_dataloader = staticmethod(build)


def _guarding(stock: Callable) -> Callable:
    def build_dataloader(
        dataloader: data.DataLoader | dict,
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> data.DataLoader:
        loader = stock(dataloader, seed, diff_rank_seed)
        if isinstance(loader, data.DataLoader):
            loader.__class__ = guarded(type(loader))
        return loader

    return build_dataloader
