"""Trains a config of mmpretrain, mmdet or mmseg."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
SPLITS = ('train', 'val')
NEEDED = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from CHECKPOINT, or without one from the newest in the '
        'work folder',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in float16; optim_wrapper.dtype=bfloat16 among the '
        '--cfg-options chooses the other format',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size in use over the '
        "config's base_batch_size",
    )
    args = parser.parse_args()
    # Only now, so that -h need not wait for torch.
    from evmamba_mm.cli.arguments import check_arguments

    check_arguments(parser, args)
    if args.resume not in (None, 'auto') and not Path(args.resume).exists():
        parser.error(f'--resume: there is no file {args.resume!r}')
    return args


def add_common_arguments(parser):
    """Adds what train.py and test.py understand alike."""
    parser.add_argument('config', help='path of a config file')
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go; default: what the config says, '
        'or work_dirs/ and the name of the config',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='overrides of the config, for instance '
        'model.backbone.drop_path_rate=0.2 or key="[a, b]"',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    # torch.distributed.launch, which `mim` uses, passes the second spelling.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def resume_from(cfg, checkpoint):
    cfg.resume = True
    cfg.load_from = None if checkpoint == 'auto' else checkpoint


def use_mixed_precision(cfg):
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            "--amp: mmengine's AmpOptimWrapper runs on an accelerator only, "
            'and torch.cuda.is_available() says that there is none'
        )
    from evmamba_mm.cli.kinds import type_name

    wrapper = type_name(cfg.optim_wrapper)
    if wrapper not in ('', 'OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp needs optim_wrapper.type OptimWrapper or '
            f'AmpOptimWrapper, and the config has {wrapper}'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_learning_rate(cfg):
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            '--auto-scale-lr: the config has no '
            'auto_scale_lr.base_batch_size, so the batch size that its '
            'learning rate is meant for is unknown'
        )
    cfg.auto_scale_lr.enable = True


def prepare_config(args):
    """Returns the config with the arguments laid over it, and checked."""
    from evmamba_mm.cli import checks, classes, launch, values, weights

    cfg = launch.read_config(args)
    with checks.errors_in_a_line():
        values.check_sections(cfg, NEEDED)
        if args.resume is not None:
            resume_from(cfg, args.resume)
        if args.amp:
            use_mixed_precision(cfg)
        if args.auto_scale_lr:
            scale_learning_rate(cfg)
        values.check_values(cfg)
        values.check_out_dir(cfg)
        values.check_schedule(cfg)
        values.check_best_checkpoints(cfg)
        checks.choose_precision(cfg)
        checks.check_outputs(cfg)
        classes.check_classes(cfg)
        checks.check_data(cfg, SPLITS)
        weights.check_weight_files(cfg)
    return cfg


def main():
    args = parse_args()
    from evmamba_mm.cli import (
        checks,
        classes,
        launch,
        lock,
        missing,
        resume,
        weights,
    )

    cfg = prepare_config(args)
    with contextlib.ExitStack() as stack:
        with checks.errors_in_a_line(), launch.work_folder_named(cfg):
            stack.enter_context(lock.work_folder(cfg.work_dir, cfg.launcher))
            resume.choose_checkpoint(cfg)
        runner = launch.build_runner(cfg)
        runner.register_hook(classes.ClassesHook())
        with checks.errors_in_a_line():
            checks.check_optimizer(cfg)
            checks.check_paramwise(cfg, runner.model)
            for key, checkpoint, prefix in weights.starting_weights(cfg):
                weights.check_backbone(runner, key, checkpoint, prefix)
        if cfg.get('resume'):
            weights.resume_strictly(runner)
        stack.enter_context(launch.run_in_lines(cfg))
        with missing.missing_images_explained(cfg, SPLITS):
            runner.train()
    launch.leave_group()


def follows_ctrl_c(error):
    """Whether it is Ctrl-C, or what libraries made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def say_unraisable(unraisable):
    """Say an error in what Python calls by itself, such as __del__."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


if __name__ == '__main__':
    sys.unraisablehook = say_unraisable
    try:
        main()
    except BaseException as error:
        # The next Ctrl-C must not break into the end by the first.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not follows_ctrl_c(error):
            signal.signal(signal.SIGINT, before)
            raise
        if os.environ.get('LOCAL_RANK', '0') == '0':
            print(
                'interrupted; --resume goes on from the last checkpoint',
                file=sys.stderr,
            )
        for worker in multiprocessing.active_children():
            worker.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        # At a usual exit, objects of libraries that were half made complain,
        # and torch's writer of a checkpoint aborts the process.
        os._exit(130)
