"""The command line of tools/benchmark.py."""

import argparse
from pathlib import Path

# The values of modes.py, which imports torch; a test holds them together.
MODES = ('eager', 'compiled', 'deployed', 'graph')
DETECTION_MODES = ('eager', 'graph')
PHASES = ('inference', 'training')
DTYPES = ('fp32', 'fp16', 'bf16')
SCAN_PHASES = ('forward', 'backward')
SCAN_SHAPES = ((128, 4, 96, 784, 16), (128, 4, 192, 196, 16))
SIZES = (224, 448, 896, 1792)
DETECTOR = 'configs/mmdet/mask-rcnn-std_evmamba-tiny_fpn_8xb2-amp-1x_coco.py'


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


def parse(description, argv=None):
    parser = argparse.ArgumentParser(description=description)
    tasks = parser.add_subparsers(dest='task', required=True)
    add_classifiers(tasks)
    add_scans(tasks)
    add_detection(tasks)
    for task in tasks.choices.values():
        add_measuring(task)
    add_plot(tasks)
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


def add_plot(tasks):
    parser = tasks.add_parser('plot', help='throughput against top-1')
    parser.add_argument('rows', type=Path, metavar='FILE.csv')
    parser.add_argument(
        '--accuracy',
        type=Path,
        required=True,
        metavar='FILE.csv',
        help='columns model (as measured), name (as written), top1',
    )
    parser.add_argument('--mode', choices=MODES, default='eager')
    parser.add_argument('--phase', choices=PHASES, default='inference')
    for name in ('--batch', '--size'):
        parser.add_argument(
            name, type=positive, help='of the rows; needed if they have more'
        )
    parser.add_argument(
        *('-o', '--output'), type=Path, required=True, metavar='FILE'
    )


def add_table(tasks):
    parser = tasks.add_parser('table', help='a Markdown table of the rows')
    parser.add_argument('rows', type=Path, metavar='FILE.csv')
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
