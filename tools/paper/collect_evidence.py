"""Trains configs with several seeds, and stores what they reach.

Each training is `tools/train.py CONFIG` with its own seed. Its last scores go
into results/evidence/FOLDER.csv beside this file, where FOLDER is the one that
the config lies in, and its log lines into results/evidence/curves/. Trainings
that are in the file already are left out, so that the same command goes on
after an interruption. Weights that a config starts from and that are not there
are trained first; their scores go into work_dirs/evidence/starts/.

exit status: 0 if all trainings ended well, 1 if not, 2 if an argument is wrong
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'tools' / 'paper' / 'results' / 'evidence'
WORK_DIR = ROOT / 'work_dirs' / 'evidence'


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def seed(text):
    # NumPy takes no larger ones.
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no seed, an integer from 0 to 2**32 - 1'
        )
    return int(text)


def in_repository(path):
    """A path as the tools, which run in the repository's root, write it."""
    # Not resolved first: data and work folders may be links to other disks.
    for whole in (Path(os.path.abspath(path)), path.resolve()):
        if whole.is_relative_to(ROOT):
            return whole.relative_to(ROOT)
    return whole


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
        default=WORK_DIR,
        help='where logs and checkpoints go (default: work_dirs/evidence; the '
        'configs take weights from there)',
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
    check_paths(parser, args)
    return args


def check_paths(parser, args):
    """Refuses what is no config or folder; writes paths as the tools do."""
    for config in args.configs:
        if not config.is_file() or config.suffix != '.py':
            parser.error(f'there is no config {str(config)!r}')
    for name in ('results', 'work_dir'):
        folder = getattr(args, name)
        around = [folder, *folder.absolute().parents]
        there = next(path for path in around if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            parser.error(
                f'--{name.replace("_", "-")} {str(folder)!r} is no folder '
                'that can be written to'
            )
        setattr(args, name, in_repository(folder))
    args.configs = [in_repository(config) for config in args.configs]


def trainings_of(args):
    """What is asked for, each once.

    All rows with one seed first, so that an interruption leaves whole sets.
    """
    from evidence.trainings import Training, check_batch

    together = {len(group.split(',')) for group in args.gpus or ['']}
    if len(together) > 1:
        raise ValueError('--gpus: groups of different sizes')
    wanted = [
        Training(config, seed, *together)
        for seed in args.seeds
        for config in args.configs
    ]
    for training in dict.fromkeys(wanted[: len(args.configs)]):
        check_batch(training)
    return dict.fromkeys(wanted)


def main(argv=None):
    args = parse_args(argv)
    # Paths are those of the tools from here on.
    os.chdir(ROOT)
    from evidence.scores import Scores
    from evidence.trainings import devices, head_of, start_of, train_all

    commit = args.commit or head_of(Path(__file__))
    scores = Scores(args.results, commit)
    # Where the configs look for weights, whatever --work-dir says.
    work_dir = in_repository(WORK_DIR)
    try:
        slots = devices(args.gpus) * args.side_by_side
        todo = [each for each in trainings_of(args) if each not in scores]
        starts = dict.fromkeys(filter(None, map(start_of, todo)))
        failed = train_all(
            *(starts, slots, args.side_by_side, work_dir),
            Scores(work_dir / 'starts', commit),
        )
        failed = failed or train_all(
            todo, slots, args.side_by_side, args.work_dir, scores
        )
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            'interrupted; the same command trains what is missing',
            file=sys.stderr,
        )
        return 130
    for training, error in failed:
        print(f'error: {training}: {error}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
