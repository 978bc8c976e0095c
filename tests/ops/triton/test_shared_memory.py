import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What a block can have on sm_86.
MOST_BYTES = 99 * 1024


def kernels():
    """Every kernel of the package, as 'family.name'."""
    for file in sorted((ROOT / 'evmamba_mm/ops/triton').glob('*.py')):
        family = importlib.import_module(f'evmamba_mm.ops.triton.{file.stem}')
        for name in vars(family):
            if name.startswith('_') and name.endswith('_kernel'):
                yield f'{file.stem}.{name}'


def test_kernels_fit_into_small_gpus(tmp_path):
    """Compiled by themselves: the interpreter has room for everything."""
    triton = pytest.importorskip('triton', reason='triton is not installed')
    if tuple(map(int, triton.__version__.split('.')[:2])) < (3, 3):
        pytest.skip('before Triton 3.3 kernels are described otherwise')
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != 'TRITON_INTERPRET'
    }
    done = subprocess.run(
        [sys.executable, '-m', 'tests.ops.triton.shared_memory'],
        cwd=ROOT,
        env=environment | {'TRITON_CACHE_DIR': str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [x for x in done.stdout.splitlines() if x.startswith('[')]
    compiled = [json.loads(line) for line in lines]
    assert {name for name, *_ in compiled} == set(kernels())
    assert {architecture for _, architecture, *_ in compiled} == {80, 86, 90}
    assert [line for line in compiled if line[-1] > MOST_BYTES] == []
