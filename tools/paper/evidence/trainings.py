"""Runs trainings side by side, each with its own seed."""

import os
import queue
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2]
# How the last weights are tested besides, by the folder of the config.
TESTS = {
    'camvid': {
        'sliding window': (
            '--cfg-options',
            'model.test_cfg.mode=slide',
            'model.test_cfg.crop_size=[320,320]',
            'model.test_cfg.stride=[214,214]',
        ),
        'multi-scale': ('--tta',),
    }
}


@dataclass(frozen=True)
class Training:
    """A config and the seed that it is trained with."""

    config: Path
    seed: int
    gpus: int = 1

    def __str__(self) -> str:
        return f'{self.task}/{self.row}, seed {self.seed}'

    @property
    def task(self) -> str:
        """The folder that the config lies in."""
        return self.config.parent.name

    @property
    def row(self) -> str:
        """The config's name."""
        return self.config.stem

    def work_dir(self, root: Path) -> Path:
        """Where its log and checkpoints go."""
        return root / self.task / f'{self.row}-{self.seed}'

    def command(self, root: Path) -> list[str]:
        """The command line."""
        config = str(self.config)
        start = ['python', 'tools/train.py', config]
        if self.gpus > 1:
            start = ['bash', 'tools/dist_train.sh', config, str(self.gpus)]
        return [
            *start,
            *('--work-dir', str(self.work_dir(root))),
            *('--cfg-options', f'randomness.seed={self.seed}'),
        ]

    def tests(self, root: Path) -> dict[str, list[str]]:
        """The command line of each further test, by its name."""
        folder = self.work_dir(root)
        return {
            name: [
                *('python', 'tools/test.py', str(self.config)),
                str(last_checkpoint(folder)),
                *('--work-dir', str(folder / name.replace(' ', '-'))),
                *options,
            ]
            for name, options in TESTS.get(self.task, {}).items()
        }


def last_checkpoint(folder: Path) -> Path:
    """What a finished training left."""
    name = (folder / 'last_checkpoint').read_text().strip()
    return folder / Path(name).name


def head_of(path: Path) -> str:
    """Git's short name of the commit that a file is in."""
    asked = ['git', 'rev-parse', '--short', 'HEAD']
    told = subprocess.run(
        asked, cwd=path.parent, capture_output=True, text=True
    )
    return told.stdout.strip() or 'unknown'


def devices(gpus: list[str] | None) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES, one a training.

    Args:
        gpus: Each a GPU, or several with commas between them, which train
            one config together.

    Raises:
        ValueError: If there is no such GPU, without which a training would
            run on the CPU.
    """
    import torch

    known = [str(i) for i in range(torch.cuda.device_count())]
    for gpu in (each for group in gpus or () for each in group.split(',')):
        if gpu not in known:
            there = ', '.join(known) or 'none'
            raise ValueError(f'--gpus: no GPU {gpu!r}; there are {there}')
    return gpus or known or ['']


def train_all(todo, slots, side_by_side, root, scores):
    """Trains what is to do, as many at once as there are slots.

    Returns:
        Each training that failed, and the file of what it said.
    """
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    free = queue.Queue()
    for slot in slots:
        free.put(slot)

    def train(training):
        device = free.get()
        try:
            return run(training, device, root)
        finally:
            free.put(device)

    failed = []
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(len(slots)) as pool,
    ):
        task = bar.add_task('training', total=len(todo))
        futures = {pool.submit(train, training): training for training in todo}
        for future in as_completed(futures):
            training = futures[future]
            seconds, status, log = future.result()
            bar.advance(task)
            if status or not scores.store(
                training, root, seconds, side_by_side
            ):
                failed.append((training, log))
                continue
            print(f'{training}: {scores.shown(training)}', flush=True)
    return failed


def run(training, device, root):
    """Seconds of the training, exit status, and the file of its output."""
    folder = training.work_dir(root)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'output.txt'
    environment = os.environ | dict(CUDA_VISIBLE_DEVICES=device)
    began = time.monotonic()
    with log.open('w') as output:

        def status_of(command):
            if command[0] == 'python':
                command = [sys.executable, *command[1:]]
            return subprocess.run(
                command,
                cwd=TOOLS.parent,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode

        status = status_of(training.command(root))
        seconds = time.monotonic() - began
        if not status:
            tests = training.tests(root).values()
            status = max(map(status_of, tests), default=0)
    return seconds, status, log
