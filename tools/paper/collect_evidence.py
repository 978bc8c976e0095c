"""Trains configs with several seeds, and stores what they reach.

Each training is `tools/train.py CONFIG` with its own seed. Its last scores go
into results/evidence/FOLDER.csv beside this file, where FOLDER is the one that
the config lies in, and its log lines into results/evidence/curves/. Trainings
that are in the file already are left out, so that the same command goes on
after an interruption.

exit status: 0 if all trainings ended well, else 1
"""

import argparse
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / 'results' / 'evidence'


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def seed(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is no seed, 0 or above')
    return int(text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'configs', nargs='+', type=Path, metavar='CONFIG', help='what to train'
    )
    parser.add_argument(
        '--seeds',
        type=seed,
        nargs='+',
        default=[0, 1, 2],
        help='default: 0 1 2',
    )
    parser.add_argument(
        '--side-by-side',
        type=positive,
        default=1,
        metavar='N',
        help='trainings that share a GPU (default: 1)',
    )
    parser.add_argument(
        '--gpus',
        nargs='+',
        metavar='ID',
        help='the GPUs to use, 0,1 for two that train one config together '
        '(default: all, each by itself, or the CPU where there is none)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/evidence'),
        help='where logs and checkpoints go (default: work_dirs/evidence)',
    )
    parser.add_argument(
        '--results',
        type=Path,
        default=RESULTS,
        metavar='FOLDER',
        help='where the scores go (default: results/evidence)',
    )
    parser.add_argument(
        '--commit',
        help="what the scores belong to (default: git's short name of HEAD)",
    )
    args = parser.parse_args(argv)
    for config in args.configs:
        if not config.is_file() or config.suffix != '.py':
            parser.error(f'there is no config {str(config)!r}')
    if args.results.exists() and not args.results.is_dir():
        parser.error(f'--results {str(args.results)!r} is no folder')
    return args


def main(argv=None):
    args = parse_args(argv)
    from evidence.scores import Scores
    from evidence.trainings import Training, devices, head_of, train_all

    scores = Scores(args.results, args.commit or head_of(Path(__file__)))
    together = {len(group.split(',')) for group in args.gpus or ['']}
    if len(together) > 1:
        print('error: --gpus: groups of different sizes', file=sys.stderr)
        return 2
    # All rows with one seed first, so that an interruption leaves whole sets.
    wanted = [
        Training(config, seed, *together)
        for seed in args.seeds
        for config in args.configs
    ]
    todo = [training for training in wanted if training not in scores]
    try:
        slots = devices(args.gpus) * args.side_by_side
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    failed = train_all(todo, slots, args.side_by_side, args.work_dir, scores)
    for training, log in failed:
        print(f'error: {training}: it failed; see {log}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
