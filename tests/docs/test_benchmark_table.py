"""Tables of speed say what the files of measurements say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = {
    'README.md': [('', 'h200.csv', 'images_per_s')],
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
def test_page_shows_the_measurements(page, mark, file, unit):
    command = [sys.executable, 'tools/benchmark.py', 'table', '--unit', unit]
    made = subprocess.run(
        [*command, f'results/benchmark/{file}'],
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
