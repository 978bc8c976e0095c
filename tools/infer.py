"""Draws what a model predicts on images and videos."""

import argparse
import re
import signal
import sys
from pathlib import Path

MOST_ENLARGED = 16
EPILOG = """\
A classification config draws a label, a detection config boxes and masks, a
segmentation config a map of the classes. Put a glob in quotes.

exit status:
  0  every input was processed
  1  nothing was: an argument is wrong, or every input is broken
  2  some inputs were skipped; standard error names each, and why
"""
DONE, NOTHING_DONE, SOME_SKIPPED = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """Exits with the status that the help promises for a wrong argument."""

    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(NOTHING_DONE, f'{self.prog}: error: {message}\n')


def parse_args(argv=None):
    parser = Parser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'input', metavar='INPUT', help='an image, a folder, a glob or a video'
    )
    parser.add_argument(
        'config',
        metavar='CONFIG',
        type=config_file,
        help='a config of mmpretrain, mmdet or mmseg',
    )
    parser.add_argument(
        'checkpoint',
        metavar='CHECKPOINT',
        nargs='?',
        type=checkpoint_file,
        help='path or URL of the weights; without it those that the config '
        'names in load_from or init_cfg',
    )
    add_options(parser)
    args = parser.parse_args(argv)
    # Only now, so that -h need not wait for torch.
    from evmamba_mm.cli.arguments import check_arguments

    check_arguments(parser, args, 'CONFIG')
    return args


def add_options(parser):
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('work_dirs/predictions'),
        metavar='DIR',
        help='where the pictures go, in the folders of the input '
        '(default: work_dirs/predictions)',
    )
    parser.add_argument(
        '--device',
        type=device_name,
        default='auto',
        help='auto (a GPU if there is one; the default), cpu, cuda or cuda:0',
    )
    parser.add_argument(
        '--batch-size',
        type=positive,
        default=1,
        metavar='N',
        help='images at a time; only neighbours of one size share a batch, '
        'so it does not change the result (default: 1)',
    )
    parser.add_argument(
        '--json',
        action='store_true',
        help='write each prediction beside its picture; for a video a line '
        'for each frame',
    )
    parser.add_argument(
        '--score-thr',
        type=fraction,
        metavar='SCORE',
        help='detections must score more than this to be drawn and written '
        '(default: 0.3)',
    )
    add_drawing(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='overrides of the config',
    )


def add_drawing(parser):
    parser.add_argument(
        '--palette',
        choices=('auto', 'meta', 'distinct', 'objects'),
        default='auto',
        help='meta: the colours of the classes in the checkpoint or the '
        'config; distinct: hues of the classes that lie far apart; objects: '
        'a hue for each detected object, kept through a video; auto: objects '
        'for a detector of one class, else meta (default)',
    )
    parser.add_argument(
        '--labels',
        choices=('auto', 'all', 'none'),
        default='auto',
        help='auto: those that have a free place, and none for a detector of '
        'one class (default); all: every one',
    )
    parser.add_argument(
        '--no-labels',
        action='store_const',
        const='none',
        dest='labels',
        help='the same as --labels none',
    )
    parser.add_argument(
        '--enlarge',
        type=positive,
        metavar='N',
        help='draw on the image enlarged N times (default: small images so '
        'that lines and letters do not cover them)',
    )


def config_file(text):
    legal = ('.py', '.json', '.yaml', '.yml')
    if Path(text).is_file() and Path(text).suffix not in legal:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no config, which ends in {", ".join(legal)}; was '
            f'INPUT a glob without quotes?'
        )
    return text


def checkpoint_file(text):
    if '://' not in text and not Path(text).exists():
        raise argparse.ArgumentTypeError(f'there is no file {text!r}')
    return text


def device_name(text):
    if not re.fullmatch(r'auto|cpu|cuda(:\d+)?', text):
        raise argparse.ArgumentTypeError(
            f'{text!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...'
        )
    return text


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def fraction(text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not from 0 to 1')
    return value


def choose_device(wanted):
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == 'auto':
        return 'cuda' if count else 'cpu'
    if wanted == 'cpu':
        return wanted
    index = int(wanted.partition(':')[2] or 0)
    if index >= count:
        raise ValueError(
            f'--device is {wanted!r}, and torch sees {count} GPUs'
        )
    return wanted


def load_predictor(args):
    """Loads what the arguments name, and sets what they ask for."""
    from evmamba_mm.apis import inference, predictors
    from evmamba_mm.cli.building import mistakes_in_lines
    from evmamba_mm.cli.launch import load_config

    cfg = load_config(args.config, args.cfg_options)
    device = choose_device(args.device)
    with mistakes_in_lines():
        predictor = predictors.build_predictor(cfg, device)
    check_options(args, predictor.task)
    check_visualizer(args, predictor)
    if args.score_thr is not None:
        predictor.score_thr = args.score_thr
    predictor.labels = args.labels
    predictor.enlarge = args.enlarge
    if args.palette != 'auto':
        predictor.colour_objects = args.palette == 'objects'
    distinct = args.palette == 'distinct'
    inference.give_weights(predictor, cfg, args.checkpoint, distinct)
    return predictor


def check_options(args, task):
    if args.enlarge is not None and args.enlarge > MOST_ENLARGED:
        raise ValueError(
            f'--enlarge must be at most {MOST_ENLARGED}, got {args.enlarge}'
        )
    if args.score_thr is not None and task != 'detection':
        raise ValueError(f'--score-thr is for detection, not for {task}')
    if args.palette == 'objects' and task != 'detection':
        raise ValueError(f'--palette objects is for detection, not for {task}')
    for option in ('palette', 'labels'):
        if getattr(args, option) != 'auto' and task == 'classification':
            raise ValueError(f'--{option} is not for classification')
    if args.json and task == 'segmentation':
        try:
            import pycocotools  # noqa: F401
        except ImportError as error:
            raise ImportError(
                '--json needs pycocotools to write masks: '
                'pip install pycocotools'
            ) from error


def check_visualizer(args, predictor):
    if args.labels == 'auto':
        return
    visualizer = predictor.inferencer.visualizer
    if not hasattr(visualizer, 'labels'):
        raise ValueError(
            f'--labels is for the stock visualizer, and the config has '
            f'{type(visualizer).__name__}'
        )


def main(argv=None):
    args = parse_args(argv)
    try:
        from evmamba_mm.apis import run, sources

        collected = sources.collect(args.input, args.out_dir)
        planned = sources.plan(collected, args.out_dir)
        predictor = load_predictor(args)
    except (ValueError, ImportError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return NOTHING_DONE
    work = run.Run(predictor, args.batch_size, args.json)
    work.process(planned)
    print(
        f'{work.written} of {len(planned)} written to {args.out_dir}, '
        f'{work.reported} skipped or incomplete, {collected.left_out} other '
        f'files left out'
    )
    if not work.written:
        return NOTHING_DONE
    return SOME_SKIPPED if work.reported else DONE


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # The next one must not break into the end by the first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Objects of libraries that were half made complain when they go.
        sys.unraisablehook = lambda unraisable: None
        print('interrupted', file=sys.stderr)
        sys.exit(130)
