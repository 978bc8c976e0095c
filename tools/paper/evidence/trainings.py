"""Runs trainings side by side, each with its own seed."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WORK_DIR = Path('work_dirs', 'evidence')
# Held in a work folder while its training and tests run.
LOCK = 'collecting.lock'
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
    """What a finished training left.

    Raises:
        ValueError: If there is none.
    """
    note = folder / 'last_checkpoint'
    if not note.is_file():
        raise ValueError(f'{folder} holds no finished training')
    return folder / Path(note.read_text().strip()).name


def head_of(path: Path) -> str:
    """Git's short name of the commit that a file is in."""
    asked = ['git', 'rev-parse', '--short', 'HEAD']
    try:
        told = subprocess.run(
            asked, cwd=path.parent, capture_output=True, text=True
        )
    except OSError:
        return 'unknown'
    return told.stdout.strip() or 'unknown'


def check_batch(training: Training) -> None:
    """Refuse GPUs that would change how many images a step sees.

    Raises:
        ValueError: If the config's batch on so many GPUs is not the one that
            its `auto_scale_lr` names, or it cannot be read.
    """
    # The package first: it mends what a toolbox would trip over.
    from evmamba_mm.config_files import read_config

    cfg = read_config(training.config)
    batch = cfg.get('train_dataloader', {}).get('batch_size')
    base = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    if None in (batch, base) or batch * training.gpus == base:
        return
    raise ValueError(
        f'{training.config} is for {base} images a step, and has '
        f'{batch * training.gpus} on {training.gpus} GPU(s); --gpus 0,1 '
        'trains on two together'
    )


def start_of(training: Training) -> Training | None:
    """The training whose weights a config starts from, if they are missing."""
    from evmamba_mm.config_files import read_config

    cfg = read_config(training.config)
    init = cfg.get('model', {}).get('backbone', {}).get('init_cfg') or {}
    for path in (cfg.get('load_from'), init.get('checkpoint')):
        # work_dirs/evidence/TASK/ROW-SEED/epoch_15.pth
        work_dir = Path(path or '').parent
        if work_dir.parent.parent != WORK_DIR or Path(path).is_file():
            continue
        row, _, seed = work_dir.name.rpartition('-')
        folder = training.config.parents[1] / work_dir.parent.name
        return Training(folder / f'{row}.py', int(seed))
    return None


def devices(gpus: list[str] | None) -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES, one a training.

    Args:
        gpus: Each a GPU, or several with commas between them, which train
            one config together. They count from 0 among the visible ones.

    Raises:
        ValueError: If there is no such GPU, without which a training would
            run on the CPU, or one is named twice.
    """
    import torch

    known = [str(i) for i in range(torch.cuda.device_count())]
    groups = [group.split(',') for group in gpus or known]
    named = [gpu for group in groups for gpu in group]
    for gpu in named:
        if gpu not in known:
            there = ', '.join(known) or 'none'
            raise ValueError(f'--gpus: no GPU {gpu!r}; there are {there}')
    if len(set(named)) < len(named):
        raise ValueError(
            f'--gpus: {" ".join(gpus)} names a GPU twice; --side-by-side N '
            'has N trainings share each'
        )
    # A training's number is one among all GPUs, not among those visible here.
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = dict(
        zip(known, visible.split(',') if visible else known, strict=False)
    )
    return [','.join(names[gpu] for gpu in group) for group in groups] or ['']


def train_all(todo, slots, side_by_side, root, scores):
    """Trains what is to do, as many at once as there are slots.

    Returns:
        Each training that failed, and why.
    """
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    free, running = queue.Queue(), set()
    for slot in slots:
        free.put(slot)

    def train(training):
        device = free.get()
        try:
            # Another process may have stored it since.
            if training in scores:
                return None
            return run(training, device, root, running)
        finally:
            free.put(device)

    failed = []
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(len(slots)) as pool,
        _ended_early(pool, running),
    ):
        task = bar.add_task('training', total=len(todo))
        futures = {pool.submit(train, training): training for training in todo}
        for future in as_completed(futures):
            training = futures[future]
            bar.advance(task)
            # What one training left must not keep the others from the file.
            try:
                seconds = future.result()
                if seconds is not None:
                    scores.store(training, root, seconds, side_by_side)
            except (ValueError, OSError) as error:
                failed.append((training, error))
                continue
            print(f'{training}: {scores.shown(training)}', flush=True)
    return failed


@contextlib.contextmanager
def _ended_early(pool, running):
    """Start no further training after an error, and end those that run."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.send_signal(signal.SIGINT)
        raise


def run(training, device, root, running):
    """Seconds of a training, which its further tests follow.

    Raises:
        ValueError: If a command fails, or another process trains this.
    """
    from evmamba_mm import file_locks

    folder = training.work_dir(root)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = file_locks.acquire(folder / LOCK, wait=False)
    except BlockingIOError:
        raise ValueError('another process trains it') from None
    except NotImplementedError:
        return _run_alone(training, device, root, running)
    try:
        return _run_alone(training, device, root, running)
    finally:
        file_locks.release(folder / LOCK, lock)


def _run_alone(training, device, root, running):
    log = training.work_dir(root) / 'output.txt'
    environment = os.environ | dict(
        CUDA_VISIBLE_DEVICES=device,
        PYTHON=sys.executable,
        PORT=str(free_port()),
    )
    with log.open('w') as output:

        def carry_out(command):
            if command[0] == 'python':
                command = [sys.executable, *command[1:]]
            with subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process:
                running.add(process)
                status = process.wait()
            running.discard(process)
            if status:
                raise ValueError(f'it failed; see {log}')

        began = time.monotonic()
        carry_out(training.command(root))
        seconds = time.monotonic() - began
        for command in training.tests(root).values():
            carry_out(command)
    return seconds


def free_port():
    """A port for the processes of one training; others take other ones."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]
