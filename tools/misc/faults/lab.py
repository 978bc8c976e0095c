"""A folder with data, in which tools run and are broken."""

import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / 'tools'
SECONDS = 240
EPOCHS = 6
# Until one of two processes is missed.
TIMEOUT = 8
CONFIG = """
_base_ = {base!r}
model = dict(backbone=dict(drop_path_rate=0.3))
pipeline = [dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=40),
            dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=pipeline))
param_scheduler = dict(
    type='LinearLR', start_factor=0.1, by_epoch=False, end=20)
train_cfg = dict(max_epochs={epochs}, val_interval=1)
default_hooks = dict(
    logger=dict(interval=1), exact_resume=dict(type='ExactResumeHook'),
    signals=dict(type='SignalHook', interval=1),
    checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=2,
                    save_best='accuracy/top1'))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
randomness = dict(seed=0)
env_cfg = dict(dist_cfg=dict(timeout={timeout}))
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, negative of a signal, and output."""

    status: int
    output: str

    def is_clear(self, name):
        """Whether it failed with one line about the file."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return (
            self.status in (1, 2)
            and 'Traceback' not in self.output
            and 'weights_only=False' not in self.output
            and 'error' in lines[-1]
            and name in lines[-1]
        )


class Tally:
    """What was tried and what held, by kind of fault."""

    def __init__(self, bar, task):
        self.bar, self.task = bar, task
        self.counts = {}
        self.failures = []

    def add(self, what, held, detail=''):
        tried, good = self.counts.get(what, (0, 0))
        self.counts[what] = (tried + 1, good + bool(held))
        if not held:
            self.failures.append(f'{what}: {detail}')
            print(f'did not hold: {what}: {detail}', file=sys.stderr)
        self.bar.update(self.task, description=what[:40], advance=1)


def import_for_all():
    """Imports what no process that is started needs to import again."""
    # mmengine asks for a GPU as it is imported. Asked by NVML, torch does not
    # start CUDA, which no forked process could use then.
    os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'] = '1'
    import evmamba_mm  # noqa: F401, I001
    import mmpretrain.apis  # noqa: F401
    import torch

    # A forked process would wait for threads that its parent alone has.
    torch.set_num_threads(1)


def as_script(tool, arguments, folder, log):
    """Becomes a tool, in a process that has imported what it needs."""
    os.chdir(folder)
    with open(log, 'w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = [str(tool), *map(str, arguments)]
    import torch

    # What is compared bit for bit must not depend on cuDNN's choice.
    torch.backends.cudnn.deterministic = True
    # A shell that starts this in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A signal to its group is for it and its workers.
    os.setpgrp()
    # As Python does for a script.
    sys.path[0] = str(tool.parent)
    runpy.run_path(str(tool), run_name='__main__')


class Laboratory:
    """A folder with data, in which tools run and are broken."""

    def __init__(self, folder, seed):
        self.folder = Path(folder)
        self.chance = random.Random(seed)
        self.runs = 0
        make_data(self.folder)

    def start(self, tool, *arguments):
        self.runs += 1
        log = self.folder / f'{self.runs}.log'
        log.touch()
        process = multiprocessing.get_context('fork').Process(
            target=as_script, args=(TOOLS / tool, arguments, self.folder, log)
        )
        process.start()
        return process, log

    def end(self, process, log):
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return Ended(None, f'did not end in {SECONDS} s')
        return Ended(process.exitcode, log.read_text(errors='replace'))

    def run(self, tool, *arguments):
        return self.end(*self.start(tool, *arguments))

    def run_apart(self, *command):
        """Runs a command in a process that has imported nothing."""
        search = [str(self.folder), str(ROOT)]
        search += filter(None, [os.environ.get('PYTHONPATH')])
        result = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env={
                **os.environ,
                'PYTHON': sys.executable,
                'PYTHONPATH': os.pathsep.join(search),
                'TORCH_ELASTIC_SHUTDOWN_TIMEOUT': '5',
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        return Ended(result.returncode, result.stdout + result.stderr)

    def iterations(self, work):
        """Iterations of the newest checkpoint that loads, 0 without one."""
        from evmamba_mm.resuming import newest_checkpoint
        from evmamba_mm.weight_files import read_weights

        path, _ = newest_checkpoint(self.folder / work)
        return 0 if path is None else read_weights(path)['meta']['iter']

    def final(self, work):
        from evmamba_mm.weight_files import read_weights

        return read_weights(self.folder / work / f'epoch_{EPOCHS}.pth')


def training(work, *more):
    return ('train.py', 'c.py', '--work-dir', work, '--resume', *more)


def make_data(folder):
    import cv2
    import numpy as np

    pixels = np.random.default_rng(0)
    for index in range(8):
        image = folder / 'images' / f'class{index % 2}' / f'{index}.png'
        image.parent.mkdir(parents=True, exist_ok=True)
        noise = pixels.integers(256, size=(48, 48, 3), dtype=np.uint8)
        cv2.imwrite(str(image), noise)
    base = str(ROOT / 'tests' / 'toy_classifier.py')
    text = CONFIG.format(base=base, epochs=EPOCHS, timeout=TIMEOUT)
    (folder / 'c.py').write_text(text)
    (folder / 'imagenet' / 'val').mkdir(parents=True)


def equal(first, second):
    """Whether weights, averages and the optimiser's state are the same."""
    import torch

    if isinstance(first, dict):
        return set(first) == set(second) and all(
            equal(first[key], second[key]) for key in first
        )
    if isinstance(first, list):
        return all(map(equal, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return first == second


def same_training(first, second):
    keys = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
    return all(equal(first[key], second[key]) for key in keys)
