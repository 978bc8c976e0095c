"""A resumed training that equals the uninterrupted one."""

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

# Under this key of a checkpoint's meta.
BATCHES_DONE = 'batches_done'


def seed_for(seed: int, iteration: int) -> int:
    """Return the seed of an iteration, far from that of its neighbours."""
    state = np.random.SeedSequence([seed, iteration]).generate_state(1)
    return int(state[0])


@dataclass(frozen=True)
class _StartOfWorker:
    """Calls what the loader had for this, then seeds the worker."""

    before: Callable[[int], None] | None
    count: int
    seed: int
    rank: int = field(default_factory=get_rank)

    def __call__(self, worker_id: int) -> None:
        if self.before is not None:
            self.before(worker_id)
        worker_init_fn(worker_id, self.count, self.rank, self.seed)


class _Rest:
    """A loader whose first batches are loaded and left out."""

    def __init__(
        self, loader: DataLoader, done: int, after: Callable[[], None]
    ) -> None:
        self.loader = loader
        self.done = done
        self.after = after

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        for _ in range(self.done):
            next(batches)
        self.after()
        yield from batches


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes randomness a function of the seed and the iteration.

    The generators of Python, numpy and torch get a new seed in every
    iteration, the workers of the loader in every epoch. So a training that is
    resumed draws what it would have drawn: drop path, mixing of images, and
    the augmentation in the workers. A checkpoint of an unfinished epoch goes
    on behind its last batch.

    Workers that outlive an epoch (`persistent_workers`) keep a state of their
    own, which no checkpoint has; the log then says so.
    """

    # Before any hook that draws a number.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._done = 0
        self._resumed_iter = 0
        self._epoch_start: int | None = None
        self._warned = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Note how far the epoch of a checkpoint was."""
        meta = checkpoint.get('meta') or {}
        self._done = meta.get(BATCHES_DONE, 0)
        self._resumed_iter = meta.get('iter', 0)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Store how far the epoch is."""
        meta = checkpoint['meta']
        inside = self._epoch_start is not None
        if inside and meta['epoch'] == runner.epoch:
            meta[BATCHES_DONE] = meta['iter'] - self._epoch_start

    def before_train(self, runner) -> None:
        """Leave out the batches that the checkpoint has seen."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        # Weights that a training merely starts from set no iteration.
        resumed = self._done and loop.iter == self._resumed_iter
        if resumed and self._done <= len(loop.dataloader):
            loop.dataloader = _Rest(
                loop.dataloader,
                self._done,
                functools.partial(self._seed, runner, loop.iter),
            )
            runner.logger.info(
                'the first %d batches of epoch %d were trained before: they '
                'are loaded and left out',
                self._done,
                loop.epoch + 1,
            )

    def before_train_epoch(self, runner) -> None:
        """Seed the workers of this epoch, and its first iteration."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            rest = isinstance(loop.dataloader, _Rest)
            done = loop.dataloader.done if rest else 0
            self._epoch_start = loop.iter - done
            loader = loop.dataloader.loader if rest else loop.dataloader
            self._seed_workers(runner, loader, loop.epoch)
        self._seed(runner, runner.iter)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Seed the next iteration, before its batch is fetched."""
        self._seed(runner, runner.iter + 1)

    def after_val(self, runner) -> None:
        """Seed again: training does not depend on what validation drew."""
        self._seed(runner, runner.iter)

    def after_train_epoch(self, runner) -> None:
        """Take the whole loader again."""
        self._epoch_start = None
        loop = runner.train_loop
        if isinstance(getattr(loop, 'dataloader', None), _Rest):
            loop.dataloader = loop.dataloader.loader

    def _seed_workers(self, runner, loader: DataLoader, epoch: int) -> None:
        count = getattr(loader, 'num_workers', 0)
        if not count:
            return
        if loader.persistent_workers:
            if not self._warned:
                runner.logger.warning(
                    'persistent_workers: after a resume, augmentation '
                    'differs from that of an uninterrupted training; for '
                    'the same set train_dataloader.persistent_workers=False'
                )
            self._warned = True
            return
        own = loader.worker_init_fn
        loader.worker_init_fn = _StartOfWorker(
            own.before if isinstance(own, _StartOfWorker) else own,
            count,
            # Of no other worker in another epoch.
            runner.seed + epoch * count * get_world_size(),
        )

    @staticmethod
    def _seed(runner, iteration: int) -> None:
        seed = seed_for(runner.seed, iteration)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(seed)
