"""Measures a row of the paper: data, weights, training, test, result."""

import argparse
import signal
import sys
from pathlib import Path

from reproducing import metrics, rows

RESULTS = Path(__file__).resolve().parent / 'results'
EPILOG = """\
A row is named by its model, its config or its number, see --list.

exit status:
  0  measured, or nothing to compare on such data or with such options
  1  measured, and outside of the tolerance; with --dry-run: something is
     missing
  2  an argument is wrong, something is missing, or a command failed
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--table', type=int, help="a table's number, 2 to 8")
    parser.add_argument('--row', help='a row of it')
    parser.add_argument(
        '--list', action='store_true', help='list the rows and stop'
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='say what is there, what is missing and what would be run',
    )
    parser.add_argument(
        '--data-root',
        metavar='FOLDER',
        help='the data set; default: the environment variable that an error '
        "about it names, or the config's own data/ folder",
    )
    parser.add_argument(
        '--checkpoint',
        metavar='FILE',
        help='test these weights, and not the released ones',
    )
    parser.add_argument(
        '--train', action='store_true', help='train first, or resume training'
    )
    add_settings(parser)
    args = parser.parse_args(argv)
    if not args.list and (args.table is None or args.row is None):
        parser.error('--table and --row are needed, or --list')
    from evmamba_mm.cli.arguments import check_options

    check_options(parser, args.cfg_options)
    if args.train and args.checkpoint:
        parser.error('--train and --checkpoint exclude each other')
    return args


def add_settings(parser):
    parser.add_argument(
        '--gpus',
        type=positive,
        help='GPUs, or processes on a machine without one (default: all GPUs)',
    )
    parser.add_argument(
        '--columns',
        nargs='+',
        metavar='COLUMN',
        help='measure these columns alone, for instance miou_ss',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/reproduce'),
        metavar='FOLDER',
        help='logs and checkpoints (default: work_dirs/reproduce)',
    )
    parser.add_argument(
        '--results',
        type=Path,
        default=RESULTS / 'measured',
        metavar='FOLDER',
        help='where the measured cells go (default: '
        'tools/paper/results/measured)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='overrides of the config, in training and in testing',
    )


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def list_rows(table):
    for number in [table] if table is not None else metrics.METRICS:
        for line in rows.lines_of(number):
            print(line)


def main(argv=None):
    args = parse_args(argv)
    try:
        if args.list:
            list_rows(args.table)
            return 0
        from reproducing.plan import Plan

        plan = Plan(args)
        return plan.describe() if args.dry_run else plan.carry_out()
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    # The reader of a pipe may leave, as `head` does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # The next one must not break into the end by the first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print('interrupted', file=sys.stderr)
        sys.exit(130)
