"""A training iteration of mmengine's Runner, whole and in parts.

The batches are in memory, or the config's own loader reads them. Under
torchrun all processes train together, and the first one measures.
"""

import functools
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from ..compat import init_cpu_dist
from ..config_files import read_config
from . import timing
from .batches import (
    Replayed,
    ahead,
    lasting,
    loaded_batches,
    random_batches,
)
from .data import pipeline_config
from .stopwatch import PHASES, WHOLE, Finished, Stopwatch

# Iterations before anything is timed: graphs are captured in the first.
WARM_UP = 20
MODES = ('config', 'eager')


@dataclass(frozen=True)
class Source:
    """What a config trains on.

    Args:
        size: Side of images of noise, in memory; None for the config's data.
        loader: Whether its loader works through the training. Otherwise the
            first batches stay in memory.
        folder: Where the data are, as :func:`data.pipeline_config` takes it.
        workers: Of the loader; None for as many as the config says.

    Raises:
        ValueError: If there is noise and a loader, a folder or workers.
    """

    size: int | None = None
    loader: bool = False
    folder: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        files = self.loader or self.folder or self.workers is not None
        if self.size is not None and files:
            raise ValueError(
                f'images of noise (--random {self.size}) come from no loader '
                'and no folder; leave out either --random or --loader, '
                '--workers and --data'
            )

    def config(self, path: str) -> Config:
        """A config with these data."""
        if self.folder is None:
            config = read_config(path)
        else:
            config, _ = pipeline_config(path, self.folder)
        if self.workers is not None:
            config.train_dataloader.num_workers = self.workers
        if self.workers == 0:
            # Torch refuses them without workers.
            config.train_dataloader.update(
                persistent_workers=False, prefetch_factor=None
            )
        return config

    def batches(self, path: str, device: torch.device) -> list:
        """The batches to keep in memory, of a loader that works the first."""
        config = self.config(path)
        with DefaultScope.overwrite_default_scope(config.default_scope):
            if self.size is not None:
                pinned = device.type == 'cuda'
                return random_batches(config, self.size, pinned)
            return loaded_batches(config, *[1] if self.loader else [])


@dataclass(frozen=True)
class Window:
    """The iterations that are timed: those after `first`, up to `last`.

    Batches that were loaded before the clock starts hide for a while that the
    loader is slower than the model. So a loader gets a longer warm-up, in
    which they are used up, and enough iterations that the rest of them are
    at most an eighth. Of gradients that are accumulated whole steps are
    timed.
    """

    first: int
    last: int

    @classmethod
    def of(cls, config: Config, repeats: int, loader: bool) -> 'Window':
        """The window of at least so many iterations."""
        loaded = ahead(config.train_dataloader) if loader else 0
        step = batches_a_step(config)
        count = step * math.ceil(max(repeats, 8 * loaded) / step)
        first = WARM_UP + 2 * loaded
        return cls(first, first + count)


def batches_a_step(config: Config) -> int:
    """Of how many batches the gradients are accumulated."""
    return config.optim_wrapper.get('accumulative_counts', 1)


def processes():
    """How many train together, as torchrun says."""
    return int(os.environ.get('WORLD_SIZE', 1))


def drop_weights(node):
    """Leaves weights at random: their files need not be there."""
    if isinstance(node, dict):
        for key in ('init_cfg', 'pretrained'):
            if key == 'pretrained' or 'Pretrained' in str(node.get(key)):
                node.pop(key, None)
        node = [*node.values()]
    for child in node if isinstance(node, list | tuple) else ():
        drop_weights(child)


def build_runner(config, loader, mode, epochs, folder):
    """A Runner of the config that only trains, with this loader."""
    hooks = dict(config.get('default_hooks') or {})
    hooks['checkpoint'] = dict(type='CheckpointHook', interval=-1)
    hooks.pop('visualization', None)
    custom = config.get('custom_hooks') or []
    if mode == 'eager':
        custom = [x for x in custom if x['type'] != 'CUDAGraphHook']
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config.pop(name, None)
    drop_weights(config.model)
    launcher = 'pytorch' if processes() > 1 else 'none'
    init_cpu_dist(config, launcher)
    # The config's env_cfg says whether cuDNN tries its algorithms, as in a
    # training: it would try them anew for every number of regions.
    torch.backends.cudnn.benchmark = False
    return Runner(
        model=config.model,
        work_dir=folder,
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=9),
        optim_wrapper=config.optim_wrapper,
        data_preprocessor=config.get('data_preprocessor'),
        default_hooks=hooks,
        custom_hooks=custom,
        # A visualizer is found by it, and would write where another one did.
        experiment_name=Path(folder).name,
        default_scope=config.default_scope,
        env_cfg=config.get('env_cfg', dict(dist_cfg=dict(backend='nccl'))),
        randomness=config.get('randomness', dict(seed=None)),
        log_level='WARNING',
        launcher=launcher,
        cfg=config,
    )


def train(config, source, batches, mode, device, repeats, split):
    """Milliseconds of each phase, and the memory that it holds."""
    window = Window.of(config, repeats, source.loader)
    # The last step of a training is taken however few gradients there are.
    length = window.last + 1 + batches_a_step(config)
    # What an earlier training has left is not of this one.
    torch.cuda.empty_cache()
    watch = Stopwatch(device, window.first, window.last, split)
    with (
        tempfile.TemporaryDirectory() as folder,
        DefaultScope.overwrite_default_scope(config.default_scope),
    ):
        loader, epochs = Replayed(batches, length), 1
        if source.loader:
            images = length * config.train_dataloader.batch_size * processes()
            # However few batches an epoch has.
            loader, epochs = lasting(config.train_dataloader, images), length
        runner = build_runner(config, loader, mode, epochs, folder)
        watch.attach(runner)
        try:
            runner.train()
        except Finished:
            for name in ('after_train', 'after_run'):
                runner.call_hook(name)
        finally:
            close_log(runner.logger)
    return watch.milliseconds(), timing.held_gib(device)


def close_log(logger):
    """Keeps a logger from opening its file, whose folder will be gone."""
    for handler in [*logger.handlers]:
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()


class Trainings:
    """The two trainings that give an iteration and its parts.

    Args:
        path: Config.
        source: Its data.
        batches: See :meth:`Source.batches`.
        mode: Of `MODES`.
        device: Where it trains.
        repeats: Iterations that are timed, at least.
    """

    def __init__(self, path, source, batches, mode, device, repeats):
        self.arguments = (source, batches, mode, device, repeats)
        self.path = path
        self.found = {}

    def __call__(self, phase):
        """Time of a phase."""
        split = phase != WHOLE
        if split not in self.found:
            config = self.arguments[0].config(self.path)
            self.found[split] = train(config, *self.arguments, split)
        parts, peak = self.found[split]
        return timing.Measured(parts[phase], peak)


def dtype_of(config):
    """The precision that a config trains in."""
    wrapper = config.optim_wrapper
    if wrapper.get('type') != 'AmpOptimWrapper':
        return 'fp32'
    return dict(bfloat16='bf16').get(wrapper.get('dtype'), 'fp16')


def check_trains(path, config):
    """Refuses a config without what a training needs, with a ValueError."""
    loader, wrapper = map(config.get, ('train_dataloader', 'optim_wrapper'))
    if not isinstance(loader, Mapping) or 'batch_size' not in loader:
        raise ValueError(f'{path}: train_dataloader has no batch_size')
    if not isinstance(wrapper, Mapping):
        raise ValueError(f'{path} has no optim_wrapper')
    count = batches_a_step(config)
    if not isinstance(count, int) or count < 1:
        raise ValueError(
            f'{path}: optim_wrapper.accumulative_counts must be a positive '
            f'integer, got {count!r}'
        )


def check(session, paths, source):
    """Refuses what cannot be measured, before anything is.

    Returns:
        The precision of each config.

    Raises:
        ValueError: If the Runner would choose another device, it is a CPU
            and a config trains in mixed precision, or a config does not train.
    """
    if session.device.type != get_device():
        raise ValueError(
            f'the Runner trains on {get_device()}, got {session.device}'
        )
    dtypes = {}
    for path in paths:
        check_trains(path, read_config(path))
        dtypes[path] = dtype_of(source.config(path))
    for path, dtype in dtypes.items():
        if session.device.type == 'cpu' and dtype != 'fp32':
            raise ValueError(
                f'{path}: optim_wrapper.type is AmpOptimWrapper, which needs '
                'a GPU; on a CPU give a config with OptimWrapper'
            )
    return dtypes


def run(session, paths, modes, source):
    """Measures an iteration, and its parts, of each config in each mode.

    Raises:
        ValueError: See :func:`check`.
    """
    for path, dtype in check(session, paths, source).items():
        batches = source.batches(path, session.device)
        inputs = batches[0]['inputs']
        shape = 'x'.join(map(str, inputs[0].shape[1:]))
        for mode in modes:
            trainings = Trainings(
                *(path, source, batches, mode),
                *(session.device, session.repeats),
            )
            name = f'{mode} loader' if source.loader else mode
            row = Path(path).stem, name, processes() * len(inputs), shape
            record(session, trainings, *row, dtype)


def record(session, trainings, model, mode, batch, size, dtype):
    """Measures all phases; one error is enough for them."""
    before = session.failures
    for phase in PHASES:
        measured = functools.partial(trainings, phase)
        rank = os.environ.get('RANK', '0')
        if rank == '0':
            session.record(measured, model, mode, phase, batch, size, dtype)
            if session.failures == before:
                continue
            if processes() == 1:
                return
            # The processes are out of step.
            raise SystemExit(1)
        try:
            measured()
        except Exception as error:
            kind = type(error).__name__
            raise SystemExit(
                f'error: process {rank}: {kind}: {error}'
            ) from error
