"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Files that a killed process left begin with a dot and end so.
ENDING = '.part'


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path, and rename it to `path` at the end.

    Whoever reads `path` finds the old content or the new one, after a kill or
    a full disk, too. An error removes the temporary file.

    Args:
        path: File to write; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}{ENDING}')
    try:
        yield part
        with part.open('rb+') as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """Refuse a path, before the work for it, that no file can be written at.

    Args:
        path: File to write; its folder is made.

    Raises:
        ValueError: It says why.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError('it is a folder')
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f'{path} cannot be written: {error}') from error


def remove_parts(folder: str | Path) -> None:
    """Delete what killed processes left in a folder that nobody writes to."""
    for part in Path(folder).glob(f'.*{ENDING}'):
        part.unlink(missing_ok=True)
