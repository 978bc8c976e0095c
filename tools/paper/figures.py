"""Draws the figures of the pages, from data and from the real model.

exit status: 0; with --check 1 if the file shows other data; 2 if an argument
or a file is wrong
"""

import argparse
import sys
import tempfile
from pathlib import Path

from drawing import digest, style

RESULTS = Path(__file__).resolve().parent / 'results'
TABLE = RESULTS / 'paper' / 'table2.csv'
MODES = ('eager', 'compiled', 'deployed', 'graph')
PHASES = ('inference', 'training')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest='figure', required=True)
    accuracy = kinds.add_parser(
        'accuracy', help='top-1 against FLOPs, ours and the peers'
    )
    accuracy.add_argument(
        '--table',
        type=Path,
        default=TABLE,
        metavar='FILE.csv',
        help="rows to draw (default: the paper's Table 2)",
    )
    scan = kinds.add_parser('scan-order', help='the order of SS2D and ES2D')
    scan.add_argument(
        '--size', type=positive, default=8, help='size in pixels (default: 8)'
    )
    scan.add_argument(
        '--steps',
        type=positive,
        nargs='+',
        default=[1, 2, 3, 4],
        help='step sizes of ES2D (default: 1 2 3 4)',
    )
    shape = kinds.add_parser(
        'architecture', help='stages and blocks, with the shapes of a forward'
    )
    shape.add_argument('--arch', default='tiny', help='default: tiny')
    shape.add_argument(
        '--size',
        type=positive,
        default=224,
        help='side of the image, in pixels (default: 224)',
    )
    add_evidence(kinds)
    add_predictions(kinds)
    add_erf(kinds)
    add_curves(kinds)
    add_throughput(kinds)
    for kind in kinds.choices.values():
        add_output(kind)
    args = parser.parse_args(argv)
    if args.figure == 'erf':
        from evmamba_mm.cli.arguments import check_arguments

        check_arguments(parser, args, 'CONFIG')
    return args


def add_output(parser):
    parser.add_argument(
        *('-o', '--output'),
        type=Path,
        required=True,
        metavar='FILE',
        help=f'file to write, one of {", ".join(style.SUFFIXES)}',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; say whether FILE, a PNG, shows what would be '
        'drawn',
    )


def add_evidence(kinds):
    told = {
        'orderings': "top-1 of trainings with seeds, beside the paper's",
        'tradeoff': 'the same against FLOPs and images a second',
        'fields': 'receptive fields of the trained backbones',
        'predictions': 'what trained detectors and segmentors predict',
    }
    for figure, text in told.items():
        kinds.add_parser(figure, help=text).add_argument(
            '--scores',
            type=Path,
            default=RESULTS / 'evidence',
            metavar='FOLDER',
            help='what collect_evidence.py and collect_fields.py wrote '
            '(default: results/evidence)',
        )


def add_predictions(kinds):
    kinds.choices['predictions'].add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs', 'evidence'),
        help='of collect_evidence.py (default: work_dirs/evidence)',
    )


def add_erf(kinds):
    erf = kinds.add_parser(
        'erf',
        help="effective receptive field of the backbone of a host's model",
    )
    erf.add_argument(
        'config',
        metavar='CONFIG',
        help='a config of mmpretrain, mmdet or mmseg',
    )
    erf.add_argument(
        'checkpoint',
        metavar='CHECKPOINT',
        nargs='?',
        help='path or URL of the weights; without it those that the config '
        'names, and random ones where it names none',
    )
    erf.add_argument(
        '--images',
        type=Path,
        required=True,
        metavar='FOLDER',
        help='images to average over, also in folders inside',
    )
    erf.add_argument(
        '--limit',
        type=positive,
        default=50,
        help='images at most (default: 50)',
    )
    erf.add_argument(
        '--stage',
        type=int,
        default=-1,
        help='which of the maps that the backbone returns; negative ones '
        'count from the end (default: -1)',
    )
    erf.add_argument(
        '--crop',
        type=positive,
        metavar='PIXELS',
        help='side of the centre that is cut out of each image after the '
        'test pipeline; default: the largest that all images have',
    )
    erf.add_argument('--device', default='cpu', help='default: cpu')
    erf.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='overrides of the config',
    )


def add_curves(kinds):
    curves = kinds.add_parser(
        'curves', help='losses or metrics of trainings over their iterations'
    )
    curves.add_argument(
        'runs',
        metavar='LABEL=RUN',
        nargs='+',
        type=label_and_run,
        help='work dirs of trainings, or scalars.json files, each with a name',
    )
    curves.add_argument(
        '--key', default='loss', help='scalar of the log (default: loss)'
    )
    curves.add_argument(
        '--smooth',
        type=odd,
        default=9,
        metavar='N',
        help='mean over N logged values around each, an odd number; 1 draws '
        'the values alone (default: 9)',
    )


def add_throughput(kinds):
    throughput = kinds.add_parser('throughput', help='throughput and top-1')
    throughput.add_argument(
        'rows',
        type=Path,
        metavar='FILE.csv',
        help='what tools/analysis_tools/benchmark.py measured',
    )
    throughput.add_argument(
        '--accuracy',
        type=Path,
        required=True,
        metavar='FILE.csv',
        help='columns model (as measured), name (as written), top1',
    )
    throughput.add_argument(
        '--mode',
        choices=(*MODES, 'best'),
        default='eager',
        help='best: the fastest one of each model (default: eager)',
    )
    throughput.add_argument('--phase', choices=PHASES, default='inference')
    for name in ('--batch', '--size'):
        throughput.add_argument(
            name, type=positive, help='of the rows; needed if they have more'
        )


def label_and_run(text):
    label, equals, run = text.partition('=')
    if not (label and equals and run):
        raise argparse.ArgumentTypeError(f'{text!r} must be LABEL=RUN')
    return label, run


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def odd(text):
    number = positive(text)
    if number % 2 == 0:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be odd: as many values before each as behind it'
        )
    return number


def draw(args):
    style.check_output(args.output)
    style.require_matplotlib()
    if args.figure == 'accuracy':
        from drawing import accuracy

        accuracy.draw(args.output, args.table)
    elif args.figure in ('orderings', 'tradeoff', 'fields'):
        import importlib

        module = importlib.import_module(f'drawing.{args.figure}')
        module.draw(args.output, args.scores)
    elif args.figure == 'predictions':
        from drawing import predictions

        predictions.draw(args.output, args.scores, args.work_dir)
    elif args.figure == 'scan-order':
        from drawing import scan_order

        scan_order.draw(args.output, args.size, args.steps)
    elif args.figure == 'architecture':
        from drawing import architecture

        architecture.draw(args.output, args.arch, args.size)
    elif args.figure == 'curves':
        from drawing import curves

        curves.draw(args.output, args.runs, args.key, args.smooth)
    elif args.figure == 'throughput':
        from drawing import throughput

        throughput.draw_chosen(args)
    else:
        from drawing import erf

        erf.draw(args.output, args)


def is_current(args):
    """Whether a file shows what would be drawn into it."""
    style.require_matplotlib()
    shown = digest.digest_of_file(args.output)
    with tempfile.TemporaryDirectory() as folder:
        args.output = Path(folder, 'now.png')
        draw(args)
        return shown == digest.digest_of_file(args.output)


def main(argv=None):
    args = parse_args(argv)
    output = args.output
    try:
        if args.check:
            if is_current(args):
                return 0
            print(f'{output} shows other data; draw it anew', file=sys.stderr)
            return 1
        draw(args)
    except (ValueError, ImportError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.output} written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
