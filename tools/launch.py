"""Shared by train.py and test.py: arguments, the config, the launcher.

Heavy imports follow the check of the arguments, so that `-h` and a misspelt
path answer at once.
"""

import argparse
import difflib
import os
from pathlib import Path

import checks

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
CONFIG_ROOT = Path(__file__).resolve().parent.parent / 'configs'


def add_common_arguments(parser):
    """Adds the arguments that both tools understand alike."""
    parser.add_argument(
        'config', type=existing_config, help='path of a config file'
    )
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go; default: what the config says, '
        'or work_dirs/ and the name of the config',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        type=key_and_value,
        metavar='KEY=VALUE',
        help='overrides of the config, for instance '
        'model.backbone.drop_path_rate=0.2 or key="[a, b]"',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    # torch.distributed.launch, which `mim` uses, passes the second spelling.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def existing_config(path):
    """Returns the path of a config file; the error lists similar names."""
    if Path(path).is_file():
        return path
    near = near_configs(path)
    hint = f'; did you mean {" or ".join(near)}?' if near else ''
    raise argparse.ArgumentTypeError(f'there is no file {path!r}{hint}')


def near_configs(path):
    """Finds up to three configs whose file name resembles that of `path`."""
    wanted = Path(path)
    known = [
        file
        for folder in (CONFIG_ROOT, wanted.parent)
        for file in sorted(folder.rglob('*.py'))
        if '_base_' not in file.parts
    ]
    names = {file.stem: os.path.relpath(file) for file in known}
    stems = difflib.get_close_matches(wanted.stem, names, n=3, cutoff=0.5)
    return [names[stem] for stem in stems]


def key_and_value(text):
    """Returns `text` if it has the form KEY=VALUE."""
    key, equals, _ = text.partition('=')
    if not (key and equals):
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return text


def read_config(args):
    """Reads the config and lays the common arguments over it."""
    # The package first: it registers the backbones and mends what a toolbox
    # would trip over in its own import.
    import evmamba_mm  # noqa: F401, I001
    from mmengine.config import Config

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    options = parse_options(args.cfg_options)
    with checks.errors_in_a_line():
        checks.check_keys(cfg)
        checks.check_overrides(cfg, options)
    cfg.merge_from_dict(options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def parse_options(pairs):
    """Turns KEY=VALUE strings into a dict, by mmengine's rules for values."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument('--pairs', nargs='*', action=DictAction)
    return parser.parse_args(['--pairs', *pairs]).pairs


def build_runner(cfg):
    """Builds the runner that the config asks for, on a GPU or the CPU."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    from evmamba_mm.compat import init_cpu_dist

    with checks.errors_in_a_line():
        check_gpu_of_process(cfg.launcher)
    init_cpu_dist(cfg, cfg.launcher)
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def leave_group():
    """Ends the group of processes, whose threads may else abort the exit."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def check_gpu_of_process(launcher):
    """Refuses more processes on a machine than it has GPUs, if it has any."""
    import torch

    count = torch.cuda.device_count()
    rank = int(os.environ['LOCAL_RANK'])
    if launcher == 'pytorch' and 0 < count <= rank:
        raise ValueError(
            f'process {rank} of this machine has no GPU: torch sees {count} '
            f'(CUDA_VISIBLE_DEVICES is '
            f'{os.environ.get("CUDA_VISIBLE_DEVICES", "not set")}); ask for '
            f'GPUS={count} at most'
        )
