"""Tells whether the data or the model limits a training."""

import logging
import time

import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS

_logger = logging.getLogger('evmamba_mm')


@HOOKS.register_module()
class DataWaitHook(Hook):
    """Log the part of the time in which the device waits for data.

    ``data_time`` of the log is the time that Python waits for the loader. A
    GPU may still compute then, as Python runs ahead of it. This hook measures
    when the GPU has finished an iteration and when it gets to the next, by
    CUDA events that are read when the log is written, and logs the gaps as
    ``data_wait``, a fraction of the time. On a CPU it is the time that Python
    waits.

    Args:
        warn: The fraction from which a line of the log says what to do.

    Raises:
        ValueError: If the fraction is not between 0 and 1.
    """

    def __init__(self, warn: float = 0.1) -> None:
        if not 0 <= warn <= 1:
            raise ValueError(f'warn must be between 0 and 1, got {warn!r}')
        self.warn = warn
        self._gaps: list[tuple] = []
        self._ended = None
        self._since = None

    def before_train_epoch(self, runner) -> None:
        """Count anew: validation and starting workers are no waits."""
        self._gaps.clear()
        self._ended = self._since = None

    def before_train_iter(
        self, runner, batch_idx: int, data_batch=None
    ) -> None:
        """Mark that a batch has come."""
        now = _mark()
        if self._since is None:
            self._since = now
        if self._ended is not None:
            self._gaps.append((self._ended, now))
        self._ended = None

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Mark that the iteration is over, and log where that is due."""
        self._ended = _mark()
        due = any(
            self.every_n_inner_iters(batch_idx, hook.interval)
            for hook in runner.hooks
            if isinstance(hook, LoggerHook)
        )
        if not self._gaps or not due:
            return
        part = self._part()
        runner.message_hub.update_scalar('train/data_wait', part)
        if part >= self.warn:
            _logger.info(
                'the %s waited for data in %.0f %% of the last %d iterations; '
                'more workers (train_dataloader.num_workers is %d) or a '
                'cheaper pipeline make the training faster',
                'GPU' if torch.cuda.is_available() else 'CPU',
                100 * part,
                len(self._gaps),
                runner.train_dataloader.num_workers,
            )
        self._gaps.clear()
        self._since = self._ended

    def _part(self) -> float:
        """The gaps' part of the time since they were counted."""
        whole = _seconds(self._since, self._ended)
        waited = sum(_seconds(*gap) for gap in self._gaps)
        return min(waited / whole, 1.0) if whole > 0 else 0.0


def _mark():
    """A moment, of the device."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(first, last) -> float:
    if not torch.cuda.is_available():
        return last - first
    last.synchronize()
    return first.elapsed_time(last) / 1e3
