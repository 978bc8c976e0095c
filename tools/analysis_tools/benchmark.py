"""Measures speed and memory: models, scan, detector, iteration, data.

Rows go into a CSV file, of which `table` makes a Markdown table.
"""

import argparse
import itertools
import math
import shlex
import signal
import sys
from pathlib import Path

# Those of evmamba_mm.benchmark, which imports torch; a test compares them.
MODES = ('eager', 'compiled', 'deployed', 'graph')
DETECTION_MODES = ('eager', 'graph')
ITERATION_MODES = ('config', 'eager')
PHASES = ('inference', 'training')
DTYPES = ('fp32', 'fp16', 'bf16')
SCAN_PHASES = ('forward', 'backward')
SCAN_SHAPES = ((128, 4, 96, 784, 16), (128, 4, 192, 196, 16))
SIZES = (224, 448, 896, 1792)
DETECTOR = 'configs/mmdet/mask-rcnn-std_evmamba-tiny_fpn_8xb2-amp-1x_coco.py'


def natural(text):
    return 0 if text == '0' else positive(text)


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def numbers(text, count, example):
    parts = text.split('x')
    if len(parts) != count or not all(p.isdecimal() for p in parts):
        raise argparse.ArgumentTypeError(f'{text!r} is not like {example}')
    return tuple(positive(part) for part in parts)


def scan_shape(text):
    return numbers(text, 5, '128x4x96x784x16 (B, G, D, L, N)')


def image_size(text):
    return numbers(text, 2, '800x1333 (height, width)')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = parser.add_subparsers(dest='task', required=True)
    add_classifiers(tasks)
    add_scans(tasks)
    add_detection(tasks)
    add_iteration(tasks)
    add_data(tasks)
    for task in tasks.choices.values():
        add_measuring(task)
    add_table(tasks)
    return parser.parse_args(argv)


def add_measuring(parser):
    parser.add_argument(
        '--csv',
        type=Path,
        metavar='FILE.csv',
        help='file to store the rows in; older rows of the same measurement '
        'are replaced, all others stay',
    )
    parser.add_argument(
        '--device', help='default: cuda where there is one, else cpu'
    )
    parser.add_argument(
        '--repeats',
        type=positive,
        default=20,
        help='runs that a median is taken of (default: 20)',
    )


def add_classifiers(tasks):
    for task, text, sizes, batch in (
        ('model', 'throughput of classifiers', [224], 128),
        ('sizes', 'cost of classifiers over the image size', SIZES, 8),
    ):
        parser = tasks.add_parser(task, help=text)
        parser.add_argument(
            'models',
            nargs='+',
            metavar='MODEL',
            help='EfficientVMamba:ARCH, timm:NAME, mmpretrain:CONFIG_NAME or '
            'config:FILE.py',
        )
        add_values(parser, '--batch', batch, positive)
        parser.add_argument(
            '--size',
            type=positive,
            nargs='+',
            default=list(sizes),
            help=f'sides of the image (default: {" ".join(map(str, sizes))})',
        )
        add_choices(parser, '--dtype', DTYPES, ['bf16'])
        add_choices(parser, '--mode', MODES, ['eager'])
        add_choices(parser, '--phase', PHASES, ['inference'])
        parser.add_argument(
            '--warm',
            type=positive,
            metavar='PROCESSES',
            help='compile this many models at once before anything is '
            "measured, into Inductor's cache (default: each when its turn "
            'comes)',
        )


def add_scans(tasks):
    parser = tasks.add_parser(
        'op', help='the scan by each backend; refuses if one is wrong'
    )
    parser.add_argument(
        '--shape',
        type=scan_shape,
        nargs='+',
        default=list(SCAN_SHAPES),
        metavar='BxGxDxLxN',
        help='batch, groups, channels of a group, length, states (default: '
        'those of tiny, 128 images of 224x224)',
    )
    parser.add_argument(
        '--scan',
        nargs='+',
        metavar='SCAN',
        help='es2d_scan:BACKEND or selective_scan:BACKEND (default: what the '
        'device has kernels for, and torch)',
    )
    add_choices(parser, '--dtype', DTYPES, ['bf16'])
    add_choices(parser, '--phase', SCAN_PHASES, list(SCAN_PHASES))


def add_detection(tasks):
    parser = tasks.add_parser(
        'detection', help="a detector's training step and its backbone's part"
    )
    parser.add_argument(
        'configs',
        nargs='*',
        default=[DETECTOR],
        metavar='CONFIG',
        help=f'configs of mmdet (default: {DETECTOR})',
    )
    parser.add_argument(
        '--batch', type=positive, default=2, help='images (default: 2)'
    )
    parser.add_argument(
        '--size',
        type=image_size,
        default=(800, 1333),
        metavar='HEIGHTxWIDTH',
        help='default: 800x1333',
    )
    parser.add_argument(
        '--dtype', choices=DTYPES, default='fp16', help='default: fp16'
    )
    add_choices(parser, '--mode', DETECTION_MODES, ['eager'])


def add_iteration(tasks):
    parser = tasks.add_parser(
        'iteration',
        help="mmengine's training iteration, whole and in parts, with the "
        'batches in memory or from files',
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--random',
        type=positive,
        metavar='SIDE',
        help='images of noise of this size, for a classifier (default: the '
        "first batches of the config's own data)",
    )
    parser.add_argument(
        '--loader',
        action='store_true',
        help="train from files with the config's own loader, not on batches "
        'in memory',
    )
    parser.add_argument(
        '--workers',
        type=natural,
        help='processes of the loader (default: as the config says)',
    )
    add_folder(parser)
    add_choices(parser, '--mode', ITERATION_MODES, ['config'])


def add_folder(parser):
    parser.add_argument(
        '--data',
        metavar='FOLDER',
        help='for a classifier a folder of class folders, otherwise the '
        "config's data_root (default: the config's own data)",
    )


def add_data(tasks):
    parser = tasks.add_parser(
        'data',
        help="a config's training pipeline by step, on one core, and its data "
        'preprocessor on the device',
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    add_folder(parser)
    parser.add_argument(
        '--pipeline',
        nargs='+',
        default=['config'],
        metavar='NAME',
        help='lists of the config to measure; config is that of its training '
        'data (default: config)',
    )


def add_table(tasks):
    parser = tasks.add_parser('table', help='a Markdown table of the rows')
    parser.add_argument('rows', type=Path, metavar='FILE.csv')
    parser.add_argument(
        '--best',
        action='store_true',
        help='of the modes of a model, show the fastest',
    )
    parser.add_argument(
        '--unit',
        choices=('images_per_s', 'ms'),
        default='images_per_s',
        help='what to print (default: images_per_s)',
    )


def add_values(parser, name, default, kind):
    parser.add_argument(
        name,
        type=kind,
        nargs='+',
        default=[default],
        help=f'one or several (default: {default})',
    )


def add_choices(parser, name, choices, default):
    parser.add_argument(
        name,
        choices=choices,
        nargs='+',
        default=default,
        help=f'one or several (default: {" ".join(default)})',
    )


def compilations(args, device):
    """Commands of this tool that compile one model each."""
    commands = {}
    for model, phase in itertools.product(args.models, args.phase):
        values = dict(batch=args.batch, size=args.size, dtype=args.dtype)
        values |= dict(mode=['compiled'], phase=[phase])
        values |= dict(repeats=[1], device=[device])
        command = [sys.executable, __file__, args.task, model]
        for name, given in values.items():
            command += [f'--{name}', *map(str, given)]
        commands[f'{model} {phase}'] = command
    return commands


def classifiers(args, session):
    from evmamba_mm.benchmark import classifiers, warming

    if args.warm and 'compiled' in args.mode:
        warming.warm(compilations(args, session.device), args.warm)
    classifiers.run(
        session,
        args.models,
        args.batch,
        args.size,
        args.dtype,
        args.mode,
        args.phase,
    )
    if args.task == 'sizes':
        print('\n'.join(classifiers.growth(session.rows)))


def check_files(configs, folder=None):
    for config in configs:
        if not Path(config).is_file():
            raise ValueError(f'there is no config {config!r}')
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f'--data {folder!r} is no folder')


def check_and_count(args, device):
    """Refuses what is wrong before anything runs; returns how much there is.

    For the scan also the pairs of scan and backend.
    """
    from evmamba_mm.benchmark import data, detection, iteration, models, scans

    pairs = None
    if args.task == 'op':
        pairs = scans.default_backends(device)
        if args.scan:
            pairs = [scans.check_pair(text) for text in args.scan]
        for shape in args.shape:
            scans.step_of(shape[1])
        cases = (pairs, args.shape, args.dtype, args.phase)
    elif args.task == 'data':
        check_files(args.configs, args.data)
        pipelines = itertools.product(args.configs, args.pipeline)
        counts = [len(data.phases(c, args.data, p)) for c, p in pipelines]
        return sum(counts), pairs
    elif args.task in ('detection', 'iteration'):
        check_files(args.configs, vars(args).get('data'))
        task = dict(detection=detection, iteration=iteration)[args.task]
        cases = (args.configs, args.mode, task.PHASES)
    else:
        for name in args.models:
            models.split_name(name)
        cases = (args.models, args.batch, args.size)
        cases += (args.dtype, args.mode, args.phase)
    return math.prod(map(len, cases)), pairs


def measure(args, command):
    from evmamba_mm.benchmark import data, detection, iteration, rows, scans
    from evmamba_mm.benchmark.session import Session
    from evmamba_mm.benchmark.timing import device_of

    device = device_of(args.device)
    if args.csv is not None and args.csv.is_file():
        rows.read(args.csv)
    total, pairs = check_and_count(args, device)
    with Session(device, args.repeats, args.csv, command, total) as session:
        if args.task == 'op':
            scans.run(session, pairs, args.shape, args.dtype, args.phase)
        elif args.task == 'detection':
            detection.run(
                session,
                args.configs,
                args.mode,
                args.batch,
                *args.size,
                args.dtype,
            )
        elif args.task == 'iteration':
            source = iteration.Source(
                args.random, args.loader, args.data, args.workers
            )
            iteration.run(session, args.configs, args.mode, source)
        elif args.task == 'data':
            data.run(session, args.configs, args.data, args.pipeline)
        else:
            classifiers(args, session)
    if session.failures:
        print(f'{session.failures} of {total} failed', file=sys.stderr)
    return 1 if session.failures else 0


def run(args, command):
    from evmamba_mm.benchmark import rows

    if args.task == 'table':
        print(rows.markdown(rows.read(args.rows), args.unit, args.best))
        return 0
    from evmamba_mm.benchmark.scans import RedCheck

    try:
        return measure(args, command)
    except RedCheck as error:
        print(f'error: no speed is measured: {error}', file=sys.stderr)
        return 1


def main(argv=None):
    given = sys.argv[1:] if argv is None else argv
    args = parse_args(given)
    tool = 'tools/analysis_tools/benchmark.py'
    command = shlex.join(['python', tool, *map(str, given)])
    try:
        return run(args, command)
    except (ValueError, ImportError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    # The reader of a pipe may leave, as `head` does. Windows has no signal.
    if hasattr(signal, 'SIGPIPE'):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
