"""Keeps the workers of a loader until their training ends.

Breaks: a scheduler sends SIGTERM to all processes of a job. It ends the
loader's workers, and with them the iteration after which the training would
have written its checkpoint.
Fix: in workers that mmengine starts, SIGTERM and SIGUSR1 count only if the
training itself sends them, as torch and multiprocessing do at its end.
Remove when workers of mmengine leave signals to the training.
"""

import multiprocessing
import os
import signal
import threading

from mmengine.dataset import worker_init_fn as stock_init
from mmengine.runner import runner

SIGNALS = {
    getattr(signal, name)
    for name in ('SIGTERM', 'SIGUSR1')
    if hasattr(signal, name)
}


def apply() -> None:
    """Makes the Runner start its workers by :func:`worker_init_fn`."""
    runner.default_worker_init_fn = worker_init_fn


def worker_init_fn(
    worker_id: int,
    num_workers: int,
    rank: int,
    seed: int,
    disable_subprocess_warning: bool = False,
) -> None:
    """Do as mmengine's function does, then leave signals to the training."""
    stock_init(
        *(worker_id, num_workers, rank, seed, disable_subprocess_warning)
    )
    training = multiprocessing.parent_process()
    # macOS and Windows cannot tell who has sent a signal.
    if training is None or not hasattr(signal, 'sigwaitinfo'):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(
        target=_end_with, args=(training.pid,), daemon=True
    ).start()


def _end_with(training: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != training:
        pass
    os._exit(0)
