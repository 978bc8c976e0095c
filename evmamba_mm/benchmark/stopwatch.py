"""Times the iterations of a training, and the parts of an iteration."""

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict

from . import timing

DATA, HOOKS = 'data', 'hooks'
PREPROCESSOR = 'data preprocessor'
FORWARD, BACKWARD, OPTIMIZER = 'forward', 'backward', 'optimizer'
WHOLE, REST = 'iteration', 'rest'
PHASES = (
    *(WHOLE, DATA, PREPROCESSOR, FORWARD, BACKWARD, OPTIMIZER, HOOKS),
    REST,
)
P = ParamSpec('P')
R = TypeVar('R')


class Finished(Exception):
    """Ends a training whose iterations are timed."""


class Opening(Hook):
    """Tells a stopwatch that the Runner's hooks begin; it is the first."""

    def __init__(self, watch: 'Stopwatch') -> None:
        self.watch = watch

    def _open(self, *_) -> None:
        self.watch.end(DATA)
        self.watch.begin(HOOKS)

    before_train_epoch = after_train_epoch = _open

    def before_train_iter(
        self, runner, batch_idx: int, data_batch=None
    ) -> None:
        """A batch has come."""
        self._open()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """The parameters are updated."""
        self._open()


class Stopwatch(Hook):
    """Times iterations with the device at rest around them, as the last hook.

    With `split` the device also rests around each part of an iteration, and
    the parts are:

    - data: between the hooks of two iterations, where the loop waits for its
      loader, at the end of an epoch also for the workers to start again;
    - data preprocessor: the copy to the device, and what is done to the batch
      there, such as augmentation and normalisation;
    - forward: of the model, with its losses;
    - backward: with the scale of a loss scaler, and the gradients averaged
      between processes, which the backward does;
    - optimizer: gradients unscaled and clipped, the step, gradients dropped;
      of gradients that are accumulated a share of the step;
    - hooks: all others before and after iterations and epochs;
    - rest: the loop itself and the sum of the losses.

    A part that is called by another is a part of that.

    Args:
        device: Where the model is.
        first: The iteration after which the clock starts.
        last: The iteration after which it stops, and the training ends.
        split: Whether parts are timed.
    """

    def __init__(
        self, device: torch.device, first: int, last: int, split: bool
    ) -> None:
        self.device = device
        self.first = first
        self.last = last
        self.split = split
        self.sums: Counter[str] = Counter()
        self.seconds: float | None = None
        self._part: str | None = None

    def attach(self, runner) -> None:
        """Become the last of a Runner's hooks."""
        if self.split:
            runner.hooks.insert(0, Opening(self))
        runner.hooks.append(self)

    def begin(self, part: str) -> None:
        """Start a part, if none is running."""
        if self.split and self._part is None:
            timing.synchronize(self.device)
            self._part, self._since = part, time.perf_counter()

    def end(self, part: str) -> None:
        """End a part, if it is the one that is running."""
        if self._part == part:
            timing.synchronize(self.device)
            self.sums[part] += time.perf_counter() - self._since
            self._part = None

    @contextlib.contextmanager
    def _during(self, part: str) -> Iterator[None]:
        inner = self._part is not None
        self.begin(part)
        yield
        if not inner:
            self.end(part)

    def _timed(self, function: Callable[P, R], part: str) -> Callable[P, R]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._during(part):
                return function(*args, **kwargs)

        return timed

    def before_train(self, runner) -> None:
        """Time the calls of the parts, if they are asked for."""
        if not self.split:
            return
        model, wrapper = runner.model, runner.optim_wrapper
        inner = model.module if is_model_wrapper(model) else model
        several = isinstance(wrapper, OptimWrapperDict)
        calls = [
            (inner.data_preprocessor, 'forward', PREPROCESSOR),
            (model, 'forward', FORWARD),
        ]
        for each in wrapper.values() if several else [wrapper]:
            calls += [
                (each, 'backward', BACKWARD),
                (each, 'step', OPTIMIZER),
                (each, 'zero_grad', OPTIMIZER),
            ]
        for owner, name, part in calls:
            setattr(owner, name, self._timed(getattr(owner, name), part))

    def before_train_epoch(self, runner) -> None:
        """Hooks are over: the loop asks for a batch."""
        self.end(HOOKS)
        self.begin(DATA)

    after_train_epoch = before_train_epoch

    def before_train_iter(
        self, runner, batch_idx: int, data_batch=None
    ) -> None:
        """Hooks are over: the model trains."""
        self.end(HOOKS)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Start and stop the clock.

        Raises:
            Finished: After the last iteration.
        """
        self.end(HOOKS)
        if runner.iter in (self.first, self.last):
            timing.synchronize(self.device)
        if runner.iter == self.first:
            self.sums.clear()
            self._start = time.perf_counter()
        if runner.iter == self.last:
            self.seconds = time.perf_counter() - self._start
            raise Finished
        self.begin(DATA)

    def milliseconds(self) -> dict[str, float]:
        """Means of an iteration, or of its parts, which add up to it."""
        parts = {WHOLE: self.seconds}
        if self.split:
            parts = dict(self.sums)
            parts[REST] = self.seconds - sum(parts.values())
        count = self.last - self.first
        return {part: 1e3 * time / count for part, time in parts.items()}
