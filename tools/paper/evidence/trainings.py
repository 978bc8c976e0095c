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


@dataclass(frozen=True)
class Training:
    """A config and the seed that it is trained with."""

    config: Path
    seed: int

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
        """The command line, without the interpreter."""
        return [
            *('tools/train.py', str(self.config)),
            *('--work-dir', str(self.work_dir(root))),
            *('--cfg-options', f'randomness.seed={self.seed}'),
        ]


def head_of(path: Path) -> str:
    """Git's short name of the commit that a file is in."""
    asked = ['git', 'rev-parse', '--short', 'HEAD']
    told = subprocess.run(
        asked, cwd=path.parent, capture_output=True, text=True
    )
    return told.stdout.strip() or 'unknown'


def devices(gpus: list[str] | None) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES, one a GPU.

    Raises:
        ValueError: If there is no such GPU, without which a training would
            run on the CPU.
    """
    import torch

    known = [str(i) for i in range(torch.cuda.device_count())]
    for gpu in gpus or ():
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
    """Seconds, exit status, and the file of what it printed."""
    folder = training.work_dir(root)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'output.txt'
    environment = os.environ | dict(CUDA_VISIBLE_DEVICES=device)
    began = time.monotonic()
    with log.open('w') as output:
        status = subprocess.run(
            [sys.executable, *training.command(root)],
            cwd=TOOLS.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    return time.monotonic() - began, status, log
