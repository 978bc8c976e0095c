"""Tables of speed say what the files of measurements say."""

import csv
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / 'tools' / 'paper' / 'results' / 'benchmark'
TABLES = {
    'docs/benchmark.md': [('', 'h200.csv', 'images_per_s')],
    'docs/graphs.md': [(' h200_iteration.csv ms', 'h200_iteration.csv', 'ms')],
    'docs/kernels.md': [
        (' h200_detection.csv ms', 'h200_detection.csv', 'ms'),
        (' h200_scan.csv ms', 'h200_scan.csv', 'ms'),
        (' h200_sizes.csv ms', 'h200_sizes.csv', 'ms'),
    ],
}


@pytest.mark.parametrize(
    ('page', 'mark', 'file', 'unit'),
    [(page, *table) for page, tables in TABLES.items() for table in tables],
)
def test_page_shows_the_measurements(page, mark, file, unit, warm_python):
    tool = 'tools/analysis_tools/benchmark.py'
    command = [warm_python.path, tool, 'table', '--unit', unit]
    made = subprocess.run(
        [*command, RESULTS / file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    block = re.compile(
        rf'<!-- benchmark{mark} -->\n(.*?)<!-- /benchmark -->', re.DOTALL
    )
    (shown,) = block.findall((ROOT / page).read_text())
    rows = [line for line in made.splitlines() if line.startswith('|')]
    assert shown.split() == '\n'.join(rows).split()


@pytest.mark.parametrize('page', TABLES)
def test_every_table_is_checked(page):
    marks = (ROOT / page).read_text().count('<!-- benchmark')
    assert marks == len(TABLES[page])


def shown(mark, page='docs/kernels.md'):
    block = re.compile(rf'<!-- {mark} -->\n(.*?)<!-- /{mark} -->', re.DOTALL)
    (text,) = block.findall((ROOT / page).read_text())
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()
        if '---' not in line
    ]


def rows(name):
    with open(RESULTS / name, newline='') as file:
        return list(csv.reader(file))


def test_ledger_is_that_of_the_file():
    assert shown('ledger') == rows('h200_ledger.csv')


@pytest.mark.parametrize(
    ('mark', 'files'),
    [('before-after', 'h200'), ('kernels-before-after', 'h200_kernels')],
)
def test_before_and_after_are_those_of_the_files(mark, files):
    head, *before = rows(f'{files}_before.csv')
    measured = [
        {tuple(row[:3]): dict(zip(head, row, strict=True)) for row in part}
        for part in (before, rows(f'{files}_after.csv')[1:])
    ]
    _, *lines = shown(mark)
    assert len(lines) == len(before)
    for arch, mode, phase, old, new, ratio, *peaks in lines:
        key = f'EfficientVMamba:{arch}', mode, phase
        speeds = [float(part[key]['images_per_s']) for part in measured]
        assert [old, new] == [f'{speed:,.0f}' for speed in speeds]
        assert ratio == f'{speeds[1] / speeds[0]:.2f}'
        assert peaks == [f'{float(p[key]["peak_gib"]):.2f}' for p in measured]


def test_two_gpus_are_those_of_the_file():
    head, *lines = rows('h200_two_gpus.csv')
    runs = {}
    for line in lines:
        run = dict(zip(head, line, strict=True))
        runs.setdefault(run['model_wrapper_cfg'], []).append(run)
    alone = [float(run['images_per_s']) for run in runs['']]
    speed = sum(alone) / len(alone)
    _, *table = shown('two-gpus', 'docs/graphs.md')
    usual = "dict(type='MMDistributedDataParallel', broadcast_buffers=False"
    wrappers = (
        *('', f'{usual})'),
        f'{usual}, gradient_as_bucket_view=True, static_graph=True)',
        "dict(type='FlatDistributedDataParallel')",
    )
    words = ('one GPU', 'MMDistributed', 'static_graph', 'FlatDistributed')
    for wrapper, word, (name, *cells) in zip(
        wrappers, words, table, strict=True
    ):
        same = runs.pop(wrapper)
        ratios = [float(run['images_per_s']) / speed for run in same]
        assert word in name
        assert cells == [
            ', '.join(run['ms'] for run in same),
            ', '.join(f'{ratio:.2f}' for ratio in ratios),
        ]
    assert not runs
