"""Evaluates a checkpoint with a config of mmpretrain, mmdet or mmseg."""

import argparse
import multiprocessing
import os
import signal
import sys
from pathlib import Path

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
NEEDED = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='path or URL of a checkpoint')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write every prediction to FILE.pkl'
    )
    parser.add_argument(
        '--show-dir', help='write pictures of the predictions to this folder'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation by the config's tta_model and "
        'tta_pipeline',
    )
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='warn, and do not stop, when keys of the checkpoint and of the '
        'model differ',
    )
    args = parser.parse_args()
    # Only now, so that -h need not wait for torch.
    from evmamba_mm.cli.arguments import check_arguments

    check_arguments(parser, args)
    checkpoint = args.checkpoint
    if '://' not in checkpoint and not Path(checkpoint).exists():
        parser.error(f'argument checkpoint: there is no file {checkpoint!r}')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out: {args.out!r} does not end in .pkl')
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


def augment_at_test_time(cfg):
    missing = {'tta_model', 'tta_pipeline'} - set(cfg)
    if missing:
        raise ValueError(f'--tta: the config has no {sorted(missing)}')
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline


def draw_predictions(cfg, folder):
    """Switches on the host's own visualization hook.

    The three hosts' hooks are alike in purpose and differ in every argument.
    """
    from evmamba_mm.cli.kinds import type_name

    folder = str(Path(folder).absolute())
    hook = cfg.default_hooks.get('visualization')
    kind = hook and type_name(hook)
    if kind == 'VisualizationHook':
        hook.update(enable=True, out_dir=folder, interval=1)
    elif kind == 'DetVisualizationHook':
        hook.update(draw=True, test_out_dir=folder, interval=1)
    elif kind == 'SegVisualizationHook':
        hook.update(draw=True, interval=1)
        cfg.visualizer.save_dir = folder
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    else:
        raise ValueError(
            f'--show-dir: default_hooks.visualization is {kind}, and none of '
            f'VisualizationHook, DetVisualizationHook, SegVisualizationHook'
        )


def prepare_config(args):
    """Returns the config with the arguments laid over it, and checked."""
    from evmamba_mm.cli import checks, launch, values
    from evmamba_mm.whole_files import check_writable

    cfg = launch.read_config(args)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    with checks.errors_in_a_line():
        values.check_sections(cfg, NEEDED)
        values.check_values(cfg)
        if args.tta:
            augment_at_test_time(cfg)
        if args.show_dir:
            draw_predictions(cfg, args.show_dir)
        checks.check_data(cfg, ['test'])
        if args.out:
            check_writable(args.out)
        if args.show_dir:
            check_writable(Path(args.show_dir, 'image.png'))
    return cfg


def main():
    args = parse_args()
    from evmamba_mm.cli import checks, classes, launch, missing, weights

    cfg = prepare_config(args)
    runner = launch.build_runner(cfg)
    runner.register_hook(classes.ClassesHook())
    if args.out:
        from mmengine.evaluator import DumpResults

        dump = DumpResults(out_file_path=args.out)
        runner.test_evaluator.metrics.append(dump)
    if not args.allow_partial:
        with checks.errors_in_a_line():
            weights.check_backbone(runner, 'checkpoint', args.checkpoint)
        weights.load_strictly(runner)
    with (
        launch.run_in_lines(cfg),
        missing.missing_images_explained(cfg, ['test']),
    ):
        runner.test()
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
            print('interrupted', file=sys.stderr)
        for worker in multiprocessing.active_children():
            worker.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        # At a usual exit, objects of libraries that were half made complain,
        # and torch's writer of a checkpoint aborts the process.
        os._exit(130)
