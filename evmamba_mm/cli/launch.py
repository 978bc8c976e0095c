"""The config and the Runner of train.py and test.py."""

import argparse
import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed

from ..compat import init_cpu_dist
from ..config_files import read_config as read_config_file
from ..data_preprocessor import LabelError
from ..weight_files import BrokenWeightsError
from . import building, checks, missing, samples

# Until a process that waits for another one gives up.
TIMEOUT_SECONDS = 1800
# What gloo and NCCL say about a process that is gone or does not answer.
LOST = (
    r'Timed out|timeout|Connection (closed|reset)|Broken pipe|'
    r'remote process exited|[Cc]onnection was likely closed'
)
# What losses on a CPU say about a label that is no class.
WRONG_LABEL = (
    r'Target (-?\d+) is out of bounds\.|'
    r'Class Index must be less than number of classes'
)
WORKER_ENDED = r'DataLoader worker \(pid .*\) is killed by signal: Terminated'
# What the system says about a folder that nothing can be written to.
UNUSABLE = (
    *(errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EPERM),
    errno.EROFS,
)


def load_config(path: str | Path, pairs: Sequence[str] = ()) -> Config:
    """Read a config and lay KEY=VALUE strings over it.

    Raises:
        ValueError: If the file cannot be read, a key of it is misspelt, or an
            override would change nothing that is read.
    """
    cfg = read_config_file(path)
    options = parse_options(pairs)
    checks.check_keys(cfg)
    checks.check_overrides(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except (AssertionError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f'--cfg-options: {error}') from error
    return cfg


def read_config(args: argparse.Namespace) -> Config:
    """Read the config of train.py or test.py with its arguments over it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with checks.errors_in_a_line():
        cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def parse_options(pairs: Sequence[str]) -> dict:
    """Turn KEY=VALUE strings into a dict, by mmengine's rules for values.

    Raises:
        ValueError: If one cannot be read.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('--pairs', nargs='*', action=DictAction)
    options = {}
    for pair in pairs:
        try:
            options |= parser.parse_args(['--pairs', pair]).pairs
        except (AssertionError, RecursionError):
            raise ValueError(
                f'--cfg-options {pair[:200]!r} cannot be read: values are '
                'words, numbers, [lists] and (tuples); give a dict key by '
                'key, as in a.b=1 a.c=2'
            ) from None
    return options


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for, on a GPU or the CPU."""
    with checks.errors_in_a_line():
        check_gpu_of_process(cfg.launcher)
    set_timeout(cfg)
    with checks.errors_in_a_line():
        init_cpu_dist(cfg, cfg.launcher)
    with (
        checks.errors_in_a_line((WorkFolderError,)),
        work_folder_named(cfg),
        building.mistakes_in_lines(builds_all=True),
    ):
        if 'runner_type' in cfg:
            return RUNNERS.build(cfg)
        return Runner.from_cfg(cfg)


class WorkFolderError(ValueError):
    """A work folder that cannot be written to; the message is one line."""


@contextlib.contextmanager
def work_folder_named(cfg: Config) -> Iterator[None]:
    """Says which folder it is that cannot be written to.

    Raises:
        WorkFolderError: In place of the system's error about it.
    """
    try:
        yield
    except OSError as error:
        folder, place = Path(cfg.work_dir).absolute(), error.filename
        about_it = place is not None and (
            folder.is_relative_to(Path(place).absolute())
            or Path(place).absolute().is_relative_to(folder)
        )
        if error.errno not in UNUSABLE or not about_it:
            raise
        raise WorkFolderError(
            f'work_dir {cfg.work_dir} cannot be written to '
            f'({error.strerror}: {place}); choose another: --work-dir FOLDER'
        ) from error


def set_timeout(cfg: Config) -> None:
    """Give processes that wait for one another a limit, if none is set."""
    if cfg.launcher == 'none':
        return
    settings = cfg.get('env_cfg') or {}
    dist = dict(settings.get('dist_cfg') or {})
    dist.setdefault('timeout', TIMEOUT_SECONDS)
    cfg.env_cfg = dict(settings, dist_cfg=dist)


@contextlib.contextmanager
def run_in_lines(cfg: Config) -> Iterator[None]:
    """Ends a training or a test with a line where the cause is known.

    That is a mistake in the config, a file of weights or an image that cannot
    be used, a label that is no class, a full disk, or another process that is
    gone or does not answer.
    """
    with (
        checks.errors_in_a_line(
            (
                *(BrokenWeightsError, LabelError),
                *(missing.MissingFileError, samples.SampleError),
            )
        ),
        samples.named(),
        building.mistakes_in_lines(cfg),
        building.unknown_score_in_a_line(),
    ):
        try:
            yield
        except (AssertionError, IndexError) as error:
            wrong = re.fullmatch(WRONG_LABEL, str(error))
            if wrong is None:
                raise
            raise LabelError(
                f'a batch has the label {wrong[1] or "(not named)"}, which is '
                'no class: set num_classes of the head in the config to the '
                'number of classes of the data set, or mend its labels'
            ) from error
        except torch.OutOfMemoryError as error:
            said = ' '.join(str(error).split())
            checks.leave(
                error,
                'the GPU has too little memory: lower batch_size of '
                f'the loader, or the size of its images ({said})',
            )
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            checks.leave(
                error,
                f'{error.strerror}: {error.filename or cfg.work_dir}; '
                'what was saved before is whole',
            )
        except RuntimeError as error:
            if re.match(WORKER_ENDED, str(error)):
                # torchrun ends the workers too, where a process was lost.
                checks.leave(error, ' '.join(str(error).split()))
            if not (
                distributed.is_initialized() and tells_of_loss(str(error))
            ):
                raise
            seconds = cfg.env_cfg.dist_cfg.timeout
            checks.leave(
                error,
                f'process {distributed.get_rank()} lost another one, '
                f'which ended or did not answer within {seconds} s '
                '(env_cfg.dist_cfg.timeout)',
            )


def tells_of_loss(text: str) -> bool:
    """Whether an error is about another process, and no worker of a loader."""
    return not text.startswith('DataLoader') and bool(re.search(LOST, text))


def leave_group() -> None:
    """End the group of processes, whose threads may else abort the exit."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def check_gpu_of_process(launcher: str) -> None:
    """Check that torchrun starts no more processes than there are GPUs.

    Raises:
        ValueError: If it does, on a machine that has a GPU.
    """
    count = torch.cuda.device_count()
    rank = int(os.environ['LOCAL_RANK'])
    if launcher == 'pytorch' and 0 < count <= rank:
        raise ValueError(
            f'process {rank} of this machine has no GPU: torch sees {count} '
            f'(CUDA_VISIBLE_DEVICES is '
            f'{os.environ.get("CUDA_VISIBLE_DEVICES", "not set")}); ask for '
            f'GPUS={count} at most'
        )
