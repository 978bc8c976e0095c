"""A training iteration of mmengine's Runner, with the batches in memory.

Under torchrun all processes train together, and the first one measures.
"""

import contextlib
import functools
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed
from torch.utils.data import DataLoader, TensorDataset

from ..compat import init_cpu_dist
from ..config_files import read_config
from . import timing

BATCHES = 4
# Iterations before anything is timed: graphs are captured in the first.
WARM_UP = 20
MODES = ('config', 'eager')
PHASES = ('iteration', 'forward', 'backward and optimizer', 'rest')


class Replayed(DataLoader):
    """A loader that gives a few batches again and again, at once.

    Args:
        batches: What a loader gave.
        length: How many to give.
    """

    def __init__(self, batches, length):
        # A Runner asks for a loader; this one loads nothing.
        super().__init__(TensorDataset(torch.zeros(length)))
        self.batches = batches
        self.count = length

    def __len__(self):
        return self.count

    def __iter__(self):
        for i in range(self.count):
            yield self.batches[i % len(self.batches)]


def processes():
    """How many train together, as torchrun says."""
    return int(os.environ.get('WORLD_SIZE', 1))


def random_batches(config, size, pinned):
    """Batches of noise for a classifier of mmpretrain.

    Raises:
        ValueError: If the config is of another toolbox.
    """
    if config.get('default_scope') != 'mmpretrain':
        raise ValueError(
            'random images serve configs of mmpretrain alone, got one of '
            f'{config.get("default_scope")!r}; give its data'
        )
    from mmpretrain.structures import DataSample

    count = config.train_dataloader.batch_size
    classes = config.model.head.num_classes

    collate = config.train_dataloader.get('collate_fn', {}).get('type')

    def batch():
        images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
        labels = torch.arange(count) % classes
        if pinned:
            images, labels = images.pin_memory(), labels.pin_memory()
        if collate in ('stack_samples', 'whole_batch'):
            return dict(inputs=images, gt_label=labels)
        return dict(
            inputs=images,
            data_samples=[
                DataSample().set_gt_label(i % classes) for i in range(count)
            ],
        )

    return [batch() for _ in range(BATCHES)]


def loaded_batches(config):
    """Batches of the config's own loader and data, the same in every run."""
    # The processes of torchrun are not a group yet.
    seed = int(os.environ.get('RANK', 0))
    set_random_seed(seed)
    loader = Runner.build_dataloader(config.train_dataloader, seed=seed)
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == BATCHES:
            break
    return batches


def drop_weights(node):
    """Leaves weights at random: their files need not be there."""
    if isinstance(node, dict):
        for key in ('init_cfg', 'pretrained'):
            if key == 'pretrained' or 'Pretrained' in str(node.get(key)):
                node.pop(key, None)
        node = [*node.values()]
    for child in node if isinstance(node, list | tuple) else ():
        drop_weights(child)


def build_runner(config, batches, mode, length, folder):
    """A Runner of the config that only trains, on these batches."""
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
        train_dataloader=Replayed(batches, length),
        train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=9),
        optim_wrapper=config.optim_wrapper,
        data_preprocessor=config.get('data_preprocessor'),
        default_hooks=hooks,
        custom_hooks=custom,
        # A visualizer is found by it, and would write where another one did.
        experiment_name=Path(folder).name,
        default_scope=config.default_scope,
        env_cfg=config.get('env_cfg', dict(dist_cfg=dict(backend='nccl'))),
        log_level='WARNING',
        launcher=launcher,
        cfg=config,
    )


class Stopwatch(Hook):
    """Times the iterations after the warm-up, the device at rest around them.

    With `split`, the device also rests around the parts of an iteration.
    """

    priority = 'LOWEST'

    def __init__(self, device, last, split):
        self.device = device
        self.last = last
        self.split = split
        self.times = {phase: [] for phase in PHASES}

    def before_train(self, runner):
        """Time the parts, if they are asked for."""
        if not self.split:
            return
        wrapper = runner.optim_wrapper
        forward, update = runner.model.forward, wrapper.update_params

        def timed_forward(inputs, data_samples=None, mode='tensor'):
            with self._timed('forward'):
                return forward(inputs, data_samples, mode)

        def timed_update(loss):
            with self._timed('backward and optimizer'):
                update(loss)

        runner.model.forward = timed_forward
        wrapper.update_params = timed_update

    @contextlib.contextmanager
    def _timed(self, phase):
        timing.synchronize(self.device)
        start = time.perf_counter()
        yield
        timing.synchronize(self.device)
        self.times[phase].append(time.perf_counter() - start)

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        """Start and stop the clock."""
        if batch_idx == WARM_UP:
            timing.synchronize(self.device)
            self.start = time.perf_counter()
        if batch_idx == self.last:
            timing.synchronize(self.device)
            self.seconds = time.perf_counter() - self.start

    def milliseconds(self):
        """Of an iteration, or of its parts."""
        whole = self.seconds / (self.last - WARM_UP)
        if not self.split:
            return {'iteration': whole * 1e3}
        # Means of the iterations of the whole: they add up to less than it.
        parts = {
            phase: statistics.fmean(times[WARM_UP + 1 : self.last + 1])
            for phase, times in self.times.items()
            if times
        }
        parts['rest'] = whole - sum(parts.values())
        return {phase: seconds * 1e3 for phase, seconds in parts.items()}


def train(config, batches, mode, device, repeats, split):
    """Milliseconds of each phase, and the memory that it holds."""
    last = WARM_UP + repeats
    # What an earlier training has left is not of this one.
    torch.cuda.empty_cache()
    watch = Stopwatch(device, last, split)
    with (
        tempfile.TemporaryDirectory() as folder,
        DefaultScope.overwrite_default_scope(config.default_scope),
    ):
        runner = build_runner(config, batches, mode, last + 1, folder)
        runner.register_hook(watch)
        try:
            runner.train()
        finally:
            close_log(runner.logger)
    return watch.milliseconds(), timing.held_gib(device)


def close_log(logger):
    """Keeps a logger from opening its file, whose folder will be gone."""
    for handler in [*logger.handlers]:
        if isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
            handler.close()


def batches_of(path, size, device):
    """Batches in memory: of noise where a size is given, else of the data."""
    config = read_config(path)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        if size is None:
            return loaded_batches(config)
        return random_batches(config, size, device.type == 'cuda')


class Trainings:
    """The two trainings that give an iteration and its parts.

    Args:
        path: Config.
        batches: See :func:`batches_of`.
        mode: Of `MODES`.
        device: Where it trains.
        repeats: Iterations that are timed.
    """

    def __init__(self, path, batches, mode, device, repeats):
        self.arguments = (batches, mode, device, repeats)
        self.path = path
        self.found = {}

    def __call__(self, phase):
        """Time of a phase."""
        split = phase != PHASES[0]
        if split not in self.found:
            config = read_config(self.path)
            self.found[split] = train(config, *self.arguments, split)
        parts, peak = self.found[split]
        return timing.Measured(parts[phase], peak)


def dtype_of(config):
    """The precision that a config trains in."""
    wrapper = config.optim_wrapper
    if wrapper.get('type') != 'AmpOptimWrapper':
        return 'fp32'
    return dict(bfloat16='bf16').get(wrapper.get('dtype'), 'fp16')


def run(session, paths, modes, size):
    """Measures an iteration, and its parts, of each config in each mode.

    Raises:
        ValueError: If the Runner would choose another device, or it is a CPU
            and a config trains in mixed precision.
    """
    if session.device.type != get_device():
        raise ValueError(
            f'the Runner trains on {get_device()}, got {session.device}'
        )
    dtypes = {path: dtype_of(read_config(path)) for path in paths}
    for path, dtype in dtypes.items():
        if session.device.type == 'cpu' and dtype != 'fp32':
            raise ValueError(
                f'{path}: optim_wrapper.type is AmpOptimWrapper, which needs '
                'a GPU; on a CPU give a config with OptimWrapper'
            )
    for path in paths:
        batches = batches_of(path, size, session.device)
        inputs = batches[0]['inputs']
        shape = 'x'.join(map(str, inputs[0].shape[1:]))
        for mode in modes:
            trainings = Trainings(
                path, batches, mode, session.device, session.repeats
            )
            for phase in PHASES:
                measured = functools.partial(trainings, phase)
                if os.environ.get('RANK', '0') != '0':
                    measured()
                    continue
                session.record(
                    measured,
                    *(Path(path).stem, mode, phase),
                    *(processes() * len(inputs), shape, dtypes[path]),
                )
