"""Compiles models in parallel processes, for a cache that they share."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from rich.console import Console
from rich.progress import Progress


def warm(commands: Mapping[str, Sequence[str]], processes: int) -> list[str]:
    """Run commands that compile models, several at once.

    A compilation takes half a minute to two; with its result in Inductor's
    cache, that of the measuring process takes a few seconds. Keys of the
    cache depend on what a process has imported, so that a command should be
    the measuring one for a single model.

    Args:
        commands: Arguments of each command, by a name for messages.
        processes: How many run at once.

    Returns:
        Names of those that failed, which measuring will tell of in full.
    """
    cores = max(1, (os.cpu_count() or 1) // processes)
    environment = dict(
        os.environ,
        # Without it each process would compile with all cores.
        TORCHINDUCTOR_COMPILE_THREADS=str(cores),
    )

    def run(command: Sequence[str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True
        )

    failed = []
    with (
        ThreadPoolExecutor(processes) as pool,
        Progress(console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task('compiling', total=len(commands))
        jobs = {pool.submit(run, c): name for name, c in commands.items()}
        for job in as_completed(jobs):
            result = job.result()
            if result.returncode != 0:
                failed.append(jobs[job])
                errors = [
                    line
                    for line in result.stderr.splitlines()
                    if line.startswith('error: ')
                ]
                why = errors[-1] if errors else f'exit {result.returncode}'
                print(f'not compiled: {jobs[job]}: {why}', file=sys.stderr)
            bar.advance(task)
    return failed
