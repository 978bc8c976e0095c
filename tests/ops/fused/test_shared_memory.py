import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What a block can have on sm_86, of the GPUs with tensor cores for bf16 the
# one with least.
SMALLEST = 99 * 1024
KINDS = {
    'batch_norm',
    'batch_statistics',
    'column_sums',
    'gated_linear_add',
    'gated_residual',
    'group_linear',
    'merge_norm',
    'norm',
    'norm_gate_linear',
    'norm_gate_linear_backward',
    'patch_norm',
    'pooled_norm',
    'squeeze_excite',
}


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
        [sys.executable, '-m', 'tests.ops.fused.shared_memory'],
        cwd=ROOT,
        env=environment | {'TRITON_CACHE_DIR': str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [x for x in done.stdout.splitlines() if x.startswith('[')]
    sizes = list(map(json.loads, lines))
    assert {name.split('(')[0] for name, _ in sizes} == KINDS
    assert [(k, v) for k, v in sizes if v > SMALLEST] == []
