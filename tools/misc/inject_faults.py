"""Breaks trainings and files on purpose, and counts what comes through.

Trains a small classifier in a temporary folder and kills it, sends it
signals, starts it twice, and gives broken files to each command. Every fault
is drawn from the seed. Needs mmpretrain.

exit status: 0 if everything held, else 1; standard error names what did not
"""

import argparse
import csv
import shlex
import sys
import tempfile
from pathlib import Path

COLUMNS = ('what', 'tried', 'held', 'command')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    parser.add_argument(
        '--kills', type=int, default=30, help='kills of trainings; default: 30'
    )
    parser.add_argument(
        '--signals', type=int, default=9, help='signals; default: 9'
    )
    parser.add_argument(
        '--pairs',
        type=int,
        default=4,
        help='trainings in one folder, and trainings of two processes; '
        'default: 4',
    )
    parser.add_argument(
        '--files',
        nargs='*',
        metavar='KIND',
        help='kinds of broken files, such as truncated; default: all',
    )
    parser.add_argument(
        '-o', '--output', type=Path, metavar='FILE.csv', help='where to write'
    )
    return parser.parse_args(argv)


def run_all(args, folder, tally):
    from faults import files, lab, trainings

    lab.import_for_all()
    laboratory = lab.Laboratory(folder, args.seed)
    whole, seconds, learning = trainings.train_whole(laboratory)
    if args.files != []:
        files.give_broken_files(laboratory, tally, args.files)
        files.write_results(laboratory, tally)
    trainings.kill_trainings(laboratory, tally, whole, seconds, args.kills)
    trainings.send_signals(laboratory, tally, whole, learning, args.signals)
    trainings.share_a_folder(laboratory, tally, args.pairs)
    trainings.lose_a_process(laboratory, tally, args.pairs)


def main(argv=None):
    args = parse_args(argv)
    from faults.lab import Tally
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    command = ' '.join(
        ['python', 'tools/misc/inject_faults.py']
        + ([] if argv is None and not sys.argv[1:] else shown(sys.argv[1:]))
    )
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(
            *columns,
            console=Console(stderr=True),
            # Those of a child are its own.
            redirect_stdout=False,
            redirect_stderr=False,
        ) as bar,
    ):
        tally = Tally(bar, bar.add_task('', total=None))
        try:
            run_all(args, folder, tally)
        finally:
            report(args, tally, command)
    return 1 if tally.failures else 0


def report(args, tally, command):
    rows = [
        dict(what=what, tried=tried, held=held, command=command)
        for what, (tried, held) in tally.counts.items()
    ]
    for row in rows:
        print(f'{row["held"]:4} of {row["tried"]:4}  {row["what"]}')
    if args.output is not None:
        with args.output.open('w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)


def shown(arguments):
    """The arguments without the file that the table is written to."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument in ('-o', '--output'):
            skip = not skip
            continue
        kept.append(shlex.quote(argument))
    return kept


if __name__ == '__main__':
    sys.exit(main())
