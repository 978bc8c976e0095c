"""Locks that the system frees when a process ends in whatever way."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)


def acquire(path: Path, wait: bool) -> TextIO:
    """Lock a file, which is made, and return it open; closing it unlocks.

    Unlike those of flock, children do not inherit the lock: the workers of a
    killed process hold nothing.

    Args:
        path: File to lock.
        wait: Whether to wait for its holder.

    Raises:
        BlockingIOError: If another process holds it.
        NotImplementedError: If the system or the file system has no locks.
    """
    if fcntl is None:
        raise NotImplementedError('this system has no such locks')
    mode = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        file = path.open('a+')
        try:
            fcntl.lockf(file, mode)
        except OSError as error:
            file.close()
            if error.errno in _HELD_BY_ANOTHER:
                raise BlockingIOError(error.errno, error.strerror) from error
            raise NotImplementedError(error.strerror) from error
        if _is_still(path, file):
            return file
        # Its holder removed it between the two calls above.
        file.close()


def release(path: Path, file: TextIO) -> None:
    """Remove a locked file and unlock it."""
    path.unlink(missing_ok=True)
    file.close()


@contextlib.contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """Wait until no other process changes a file, and keep others waiting."""
    path = Path(path)
    lock = path.with_name(f'.{path.name}.lock')
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = acquire(lock, wait=True)
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        release(lock, file)


def _is_still(path: Path, file: TextIO) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
