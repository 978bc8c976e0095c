"""Python processes in which a fault, or its mend, is shown.

A fault needs a process that does not import the package, since importing it
makes the mends.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import evmamba_mm

PACKAGE_FOLDER = Path(evmamba_mm.__file__).parents[1]
SECONDS = 240


@dataclass(frozen=True)
class Outcome:
    """What a process returned and printed."""

    code: int
    out: str
    log: str

    def lines(self):
        """What a process that succeeded printed."""
        assert self.code == 0, self.log
        return self.out.strip().splitlines()

    def assert_fault(self, *texts):
        """Asserts that it failed with one of the texts.

        Skips where it succeeded: the installed versions have no such fault.
        """
        if self.code == 0:
            pytest.skip('the installed versions work without this mend')
        assert any(text in self.log for text in texts), self.log


def run_python(*arguments, folders=(), environment=None, warm=None):
    """Runs Python with `folders` and the package to import from.

    `warm` is a Python that has imported libraries, if it may have.
    """
    python = warm.path if warm else sys.executable
    search = [*map(str, folders), str(PACKAGE_FOLDER)]
    search += filter(None, [os.environ.get('PYTHONPATH')])
    result = subprocess.run(
        [python, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(search),
            'PYTHONWARNINGS': 'ignore',
            'OMP_NUM_THREADS': '1',
            'PYTHON_EXEC': str(python),
            **(environment or {}),
        },
    )
    return Outcome(result.returncode, result.stdout, result.stderr)
