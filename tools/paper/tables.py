"""Counts the configs, and writes the tables, the pages and the model zoo.

results/paper/ beside this file holds the paper's tables as printed. Every
config is counted by the protocol of its toolbox: 224x224, or 1280x800 with
1000 proposals and 100 mask regions, or 512x2048. Written are
results/computed/, the metafile.yml of each folder of configs,
model-index.yml, and the tables between <!-- table:NAME --> and
<!-- /table:NAME --> of the given pages.
"""

import argparse
import csv
import difflib
import io
import signal
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTED = ('config', 'protocol', 'params', 'trainable_params', 'flops')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'pages',
        nargs='*',
        type=Path,
        metavar='FILE.md',
        help='pages with markers (default: README.md and docs/*.md)',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit 1 if something is not up to date',
    )
    parser.add_argument(
        '--no-count',
        action='store_true',
        help='take the numbers from tools/paper/results/computed/configs.csv',
    )
    parser.add_argument(
        '--config',
        type=Path,
        metavar='CONFIG.py',
        help='count this config alone, print it and write nothing',
    )
    args = parser.parse_args(argv)
    if args.config is not None:
        return args
    if not args.pages:
        args.pages = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
    for page in args.pages:
        if not page.is_file():
            parser.error(f'there is no page {str(page)!r}')
    return args


def csv_text(columns, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Output:
    """Writes files, or says which are not as they would be written."""

    def __init__(self, check):
        self.check = check
        self.stale = []

    def put(self, path, text):
        from evmamba_mm.whole_files import written_whole

        old = path.read_text(encoding='utf-8') if path.is_file() else ''
        if old == text:
            return
        name = path.resolve()
        if name.is_relative_to(ROOT):
            name = name.relative_to(ROOT)
        self.stale.append(str(name))
        if not self.check:
            with written_whole(path) as part:
                part.write_text(text, encoding='utf-8')
            print(f'written: {name}')
            return
        print(f'not up to date: {name}')
        lines = difflib.unified_diff(
            old.splitlines(), text.splitlines(), lineterm='', n=0
        )
        print('\n'.join(list(lines)[2:12]))


def stored_counts():
    from writing import paper

    path = paper.COMPUTED / 'configs.csv'
    if not path.is_file():
        return {}
    return {row['config']: row for row in paper.read_csv(path)}


def fresh_counts():
    """Counts every config; one that needs an absent package stays as it is."""
    from writing import zoo

    from evmamba_mm.analysis import models

    stored = stored_counts()
    counts = {}
    for config in zoo.counted_configs():
        try:
            count = asdict(models.count_config(ROOT / config))
        except ImportError as error:
            if config not in stored:
                raise
            print(f'not counted: {config}: {error}', file=sys.stderr)
            counts[config] = stored[config]
            continue
        except Exception as error:
            raise RuntimeError(f'{config} cannot be counted') from error
        counts[config] = {'config': config} | {
            key: str(value) for key, value in count.items()
        }
    return counts


def judged_tables(counts):
    from writing import paper

    for name in paper.TABLES:
        rows = []
        for row in paper.read_table(name):
            if row.config and row.config not in counts:
                raise ValueError(
                    f'tools/paper/results/paper/{name}.csv, row '
                    f'{row.number}: there is no config {row.config!r} in '
                    'tools/paper/results/computed/configs.csv'
                )
            rows.append(paper.judge(row, counts.get(row.config)))
        yield name, rows


def report(name, rows):
    """Prints a table's verdicts; returns how many lack a reason."""
    from writing import paper

    for row in rows:
        for what, unit in (('params', 'm'), ('flops', 'g')):
            verdict = row[f'{what}_verdict']
            if verdict:
                printed = row[f'paper_{what}_{unit}']
                why = f'  {row["why"]}' if verdict == paper.DIFFERS else ''
                print(
                    f'{name} row {row["row"]:2} {row["model"]:18}'
                    f' {what:6} {printed:>5} {unit.upper()}: {verdict}{why}'
                )
    missing = paper.unexplained(rows)
    for row in missing:
        print(
            f'{name} row {row["row"]} differs: say why in the note of '
            f'tools/paper/results/paper/{name}.csv',
            file=sys.stderr,
        )
    return len(missing)


def print_count(config):
    from evmamba_mm.analysis import models

    try:
        count = models.count_config(config)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(count.text())


def main(argv=None):
    args = parse_args(argv)
    if args.config is not None:
        print_count(args.config)
        return 0
    try:
        return write_all(args)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def write_all(args):
    """Writes or checks everything; 1 if something is stale or unexplained."""
    from writing import markdown, paper, zoo

    output = Output(args.check)
    counts = stored_counts() if args.no_count else fresh_counts()
    text = csv_text(COUNTED, counts.values())
    output.put(paper.COMPUTED / 'configs.csv', text)
    unexplained = 0
    for name, rows in judged_tables(counts):
        unexplained += report(name, rows)
        text = csv_text(paper.COLUMNS, rows)
        output.put(paper.COMPUTED / f'{name}.csv', text)
    for folder in zoo.folders():
        path = zoo.CONFIGS / folder / 'metafile.yml'
        output.put(path, zoo.metafile(folder, counts))
    output.put(zoo.INDEX, zoo.index())
    for page in args.pages:
        text = page.read_text(encoding='utf-8')
        output.put(page, markdown.fill(text, page.resolve().parent))
    return 1 if unexplained or (args.check and output.stale) else 0


if __name__ == '__main__':
    # The reader of a pipe may leave, as `head` does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
