"""A folder in which the commands of a page run, cut short."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from ..hub.released_files import save_released

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


class Workplace:
    """Holds this repository's configs and tools, and a quick `python`."""

    def __init__(self, folder, warm_python):
        self.folder = folder
        for name in ('configs', 'tools'):
            (folder / name).symlink_to(ROOT / name)
        self._environment = {
            **os.environ,
            'CUDA_VISIBLE_DEVICES': '',
            'OMP_NUM_THREADS': '1',
            'PATH': f'{folder / "bin"}{os.pathsep}{os.environ["PATH"]}',
            'PYTHONPATH': str(ROOT),
        }
        call = shlex.quote(str(warm_python.path))
        self._write_command('warm', f'{call} "$@"')
        script = shlex.join([sys.executable, '-IS', str(HERE / 'shorter.py')])
        more = f'$({script} "$@")'
        self._write_command('python', f'{call} "$@" {more}')
        # mim starts a tool by the Python that runs mim.
        start = f'import sys; sys.executable = {str(warm_python.path)!r}; '
        start += 'from mim.cli import cli; cli()'
        mim = shlex.join([sys.executable, '-c', start])
        self._write_command('mim', f'{mim} "$@" {more}')

    def _write_command(self, name, line):
        path = self.folder / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {line}\n')
        path.chmod(0o755)

    def run(self, script):
        """Runs lines of bash; returns the exit status and the output."""
        result = subprocess.run(
            ['bash', '-e', '-o', 'pipefail', '-c', script],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return result.returncode, result.stdout


def put_photo_and_weights(folder):
    """What a script of README reads: random weights, as they are released."""
    (folder / 'checkpoints').mkdir(exist_ok=True)
    save_released(folder / 'checkpoints/evmamba-tiny_in1k.pth', 'tiny', 1000)
    Image.new('RGB', (224, 224), 'green').save(folder / 'photo.jpg')
