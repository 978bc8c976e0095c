"""The config and the Runner of train.py and test.py."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed

from ..compat import init_cpu_dist
from . import checks


def load_config(path: str | Path, pairs: Sequence[str] = ()) -> Config:
    """Read a config and lay KEY=VALUE strings over it.

    Raises:
        ValueError: If a key of the config is misspelt, or an override would
            change nothing that is read.
    """
    cfg = Config.fromfile(path)
    options = parse_options(pairs)
    checks.check_keys(cfg)
    checks.check_overrides(cfg, options)
    cfg.merge_from_dict(options)
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
    """Turn KEY=VALUE strings into a dict, by mmengine's rules for values."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--pairs', nargs='*', action=DictAction)
    return parser.parse_args(['--pairs', *pairs]).pairs


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for, on a GPU or the CPU."""
    with checks.errors_in_a_line():
        check_gpu_of_process(cfg.launcher)
    init_cpu_dist(cfg, cfg.launcher)
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


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
