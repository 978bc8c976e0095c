"""One training in one work folder."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .. import file_locks

FILE = 'training.lock'
# By torchrun, srun and mpirun.
RANK_VARIABLES = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')

logger = logging.getLogger('evmamba_mm')


def is_first_process(launcher: str) -> bool:
    """Return whether this is the first of the processes of a launcher."""
    if launcher == 'none':
        return True
    ranks = [os.environ[name] for name in RANK_VARIABLES if name in os.environ]
    return not ranks or ranks[0] == '0'


@contextlib.contextmanager
def work_folder(folder: str | Path, launcher: str) -> Iterator[None]:
    """Hold a work folder while a training runs in it.

    A file in the folder names the process and its machine. The system frees
    it when the process ends in whatever way; what a killed one left is taken
    over with a line. Of several processes the first one holds it.

    Raises:
        ValueError: If another training holds it.
    """
    if not is_first_process(launcher):
        yield
        return
    path = Path(folder, FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = file_locks.acquire(path, wait=False)
    except BlockingIOError as error:
        raise ValueError(_refusal(path)) from error
    except NotImplementedError as error:
        logger.warning(
            '%s cannot be locked (%s): a second training in it would not be '
            'noticed',
            path.parent,
            error,
        )
        yield
        return
    try:
        _sign(path, file)
        yield
    finally:
        file_locks.release(path, file)


def _sign(path: Path, file: TextIO) -> None:
    file.seek(0)
    left = file.read().strip()
    if left:
        logger.warning(
            '%s was left by %s, which is gone: taken over', path, left
        )
    file.seek(0)
    file.truncate()
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()


def _refusal(path: Path) -> str:
    holder = path.read_text().strip() or 'another process'
    return (
        f'{path.parent} is in use: {holder} trains there. Wait until it has '
        'ended, or choose another folder: --work-dir FOLDER'
    )
