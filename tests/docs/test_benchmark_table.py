"""README's table of speed says what the file of measurements says."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'<!-- benchmark -->\n(.*?)<!-- /benchmark -->', re.DOTALL)


def test_readme_shows_the_measurements():
    made = subprocess.run(
        [
            sys.executable,
            'tools/benchmark.py',
            'table',
            'results/benchmark/h200.csv',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    shown = BLOCK.search((ROOT / 'README.md').read_text()).group(1)
    rows = [line for line in made.splitlines() if line.startswith('|')]
    assert shown.split() == '\n'.join(rows).split()
