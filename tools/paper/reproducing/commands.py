"""The commands that train and test a row, and what a test leaves behind."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2]


def tool(name, gpus, *positional):
    """A tool for one process, or its launcher for several."""
    if gpus == 1:
        return [sys.executable, str(TOOLS / f'{name}.py'), *positional]
    script = str(TOOLS / f'dist_{name}.sh')
    return ['bash', script, *positional, str(gpus)]


def with_options(command, options):
    return [*command, *(['--cfg-options', *options] if options else [])]


def train_command(config, gpus, work_dir, scale_lr, options):
    command = [*tool('train', gpus, config), '--work-dir', str(work_dir)]
    # A killed training goes on; the first one starts at the beginning.
    command.append('--resume')
    if scale_lr:
        command.append('--auto-scale-lr')
    return with_options(command, options)


def test_command(config, checkpoint, gpus, work_dir, multi_scale, options):
    command = tool('test', gpus, config, str(checkpoint))
    command += ['--work-dir', str(work_dir)]
    if multi_scale:
        command.append('--tta')
    return with_options(command, options)


def shown(command):
    return f'$ {shlex.join(command)}'


def run(command):
    """Runs a command, whose output goes on being seen.

    Raises:
        ValueError: If it fails.
    """
    print(shown(command), flush=True)
    environment = {**os.environ, 'PYTHON': sys.executable}
    status = subprocess.run(command, env=environment).returncode
    if status != 0:
        raise ValueError(
            f'the command above ended with status {status}; what it said is '
            'above'
        )


def reports_in(work_dir):
    """The files of scores that mmengine left in a work folder."""
    return set(Path(work_dir).glob('*/*.json'))


def run_test(command, work_dir):
    """Runs a test; returns the scores by the host's names for them."""
    before = reports_in(work_dir)
    run(command)
    new = sorted(reports_in(work_dir) - before)
    if not new:
        raise ValueError(
            f'the test left no scores in {work_dir}: default_hooks.logger '
            'must be a LoggerHook'
        )
    return json.loads(new[-1].read_text())


def trained_checkpoint(work_dir):
    """The newest best checkpoint of a training that loads, or the last one.

    Raises:
        ValueError: If there is none.
    """
    from evmamba_mm.resuming import newest_checkpoint
    from evmamba_mm.weight_files import BrokenWeightsError, read_weights

    best = sorted(
        Path(work_dir).glob('best_*.pth'),
        key=lambda path: path.stat().st_mtime,
    )
    for path in reversed(best):
        try:
            read_weights(path)
        except BrokenWeightsError as error:
            print(f'not tested: {error}', file=sys.stderr)
            continue
        return path
    last, notes = newest_checkpoint(work_dir)
    for note in notes:
        print(note, file=sys.stderr)
    if last is None:
        raise ValueError(f'the training left no checkpoint in {work_dir}')
    return last
