"""A checkpoint and a line when the machine asks a training to stop."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import all_reduce, barrier, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import distributed

from ..arguments import checked
from ..whole_files import written_whole
from .atomic_checkpoint import BACKEND

FILE = 'interrupted.pth'


@HOOKS.register_module()
class SignalHook(Hook):
    """Ends a training on SIGTERM or SIGUSR1 with a checkpoint.

    After the iteration that runs, `interrupted.pth` is written to the work
    folder, and the process exits with 128 plus the signal's number. Several
    processes compare notes every `interval` iterations and stop together, so
    it is enough that one of them gets the signal. In validation the signal
    waits until the next iteration.

    Args:
        signals: Names of signals.
        interval: Iterations between two looks at the other processes.

    Raises:
        ValueError: If a signal is unknown, or the interval is below 1.
    """

    # After schedules, averages and the regular checkpoint.
    priority = 'LOWEST'

    @checked
    def __init__(
        self,
        signals: Sequence[str] = ('SIGTERM', 'SIGUSR1'),
        interval: int = 10,
    ) -> None:
        known = signal.Signals.__members__
        for name in signals:
            if name not in known:
                raise ValueError(
                    f'signals: {name!r} is none of {", ".join(known)}'
                )
        self.signals = [known[name] for name in signals]
        self.interval = interval
        self._caught = 0
        self._before: dict = {}

    def before_train(self, runner) -> None:
        """Listen."""
        self._caught = 0
        for number in self.signals:
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame) -> None:
        self._caught = number

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Stop if a signal came."""
        number = self._caught
        if get_world_size() > 1:
            if (runner.iter + 1) % self.interval:
                return
            caught = torch.tensor([number], device=self._device(runner))
            all_reduce(caught, 'max')
            number = int(caught)
        if number:
            self._stop(runner, number)

    @staticmethod
    def _device(runner) -> torch.device:
        return next(runner.model.parameters()).device

    def _stop(self, runner, number: int) -> None:
        path = Path(runner.work_dir, FILE)
        runner.save_checkpoint(
            runner.work_dir,
            FILE,
            by_epoch=False,
            backend_args=dict(backend=BACKEND),
        )
        if runner.rank == 0:
            with written_whole(path.with_name('last_checkpoint')) as part:
                part.write_text(str(path))
            print(
                f'stopped by {signal.Signals(number).name} after iteration '
                f'{runner.iter + 1}: {path} is written, and --resume goes on '
                'from it',
                file=sys.stderr,
                flush=True,
            )
        self.after_train(runner)
        # No process leaves while another one waits for it.
        barrier()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        sys.exit(128 + number)

    def after_train(self, runner) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
