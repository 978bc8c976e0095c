"""A folder in which the commands of a page run, cut short."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from ..hub.released_files import save_released

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


class Workplace:
    """Holds this repository's configs and tools, and a quick `python`.

    Leaving it ends the server behind that `python`.
    """

    def __init__(self, folder):
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

    def __enter__(self):
        address = self.folder / 'server'
        command = [sys.executable, HERE / 'warm_python.py', 'serve', address]
        self._server = subprocess.Popen(
            command, cwd=self.folder, env=self._environment
        )
        while not address.exists():
            if self._server.poll() is not None:
                raise RuntimeError('the server of warm_python.py has ended')
            time.sleep(0.1)
        python = shlex.join([sys.executable, '-IS'])
        warm = shlex.quote(str(HERE / 'warm_python.py'))
        more = f'$({python} {shlex.quote(str(HERE / "shorter.py"))} "$@")'
        start = 'from mim.cli import cli; cli()'
        mim = shlex.join([sys.executable, '-c', start])
        call = f'{python} {warm} call {shlex.quote(str(address))}'
        self._write_command('warm', f'{call} "$@"')
        self._write_command('python', f'{call} "$@" {more}')
        self._write_command('mim', f'{mim} "$@" {more}')
        return self

    def __exit__(self, *_):
        self._server.terminate()
        self._server.wait()

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
