import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

from .two_processes import WAYS

ROOT = Path(__file__).parents[2]


def test_gradients_of_cast_weights_are_averaged(tmp_path):
    """By Triton's interpreter, on the CPU."""
    triton = pytest.importorskip('triton', reason='triton is not installed')
    versions = Version(triton.__version__), Version(numpy.__version__)
    if versions[0] < Version('3.7') and versions[1] >= Version('2.5'):
        pytest.skip(
            'the interpreter of Triton {} does not loop under numpy {}'.format(
                *versions
            )
        )
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'tests.backbones.two_processes'),
            str(tmp_path / 'store'),
        ],
        cwd=ROOT,
        env=os.environ | {'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [x for x in done.stdout.splitlines() if x.startswith('[')]
    found = [json.loads(line) for line in lines]
    assert found == [[name, True, True] for name in WAYS]
