"""Compiled kernels on the disk.

Machine code is run as it is found, so only what this user wrote is read: from
a folder of the user's own, out of files that name their key and the digest of
their content.
"""

import contextlib
import functools
import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CACHE_VARIABLE = 'EVMAMBA_CACHE_DIR'
_FORMAT = 'evmamba_mm kernel 1'
# What a killed process left half written is removed after an hour.
_STALE_SECONDS = 3600
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_logger = logging.getLogger('evmamba_mm')


@functools.cache
def _warn_once(reason: str) -> None:
    _logger.warning(
        'compiled kernels are not kept, and every process compiles its own: '
        '%s',
        reason,
    )


def _bases() -> Iterator[Path]:
    """Folders that may hold the user's own, the best one first."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        yield Path(given)
        return
    cache = os.environ.get('XDG_CACHE_HOME')
    # A user without a home has an identity number alone.
    with contextlib.suppress(RuntimeError):
        yield Path(cache) if cache else Path.home() / '.cache'
    yield Path(tempfile.gettempdir())


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Refuse what another user made or may change, with a PermissionError."""
    if status.st_uid != os.getuid():
        raise PermissionError(
            f'{path} belongs to user {status.st_uid}, and this process runs '
            f'as {os.getuid()}; set {CACHE_VARIABLE} to another folder'
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise PermissionError(
            f'{path} can be written by others; run chmod go-w on it, or set '
            f'{CACHE_VARIABLE} to another folder'
        )


def _own_folder() -> Path:
    """The user's own folder, which is made if it is missing.

    Raises:
        OSError: If there is none that can be used; it says why.
    """
    errors = []
    for base in _bases():
        folder = base / f'evmamba_mm-{os.getuid()}'
        try:
            base.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(f'{folder} is no folder')
            _check_owner(folder, status)
            return folder
        except OSError as error:
            errors.append(error)
    raise errors[0]


def _header(key: str, code: bytes) -> bytes:
    digest = hashlib.sha256(code).hexdigest()
    return f'{_FORMAT} {key} {digest}\n'.encode()


def read(key: str) -> bytes | None:
    """Machine code of a key, or None where there is none that is whole."""
    try:
        path = _own_folder() / f'{key}.cubin'
        # A link could lead to a file of another user's.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, 'rb') as file:
            _check_owner(path, os.fstat(descriptor))
            header, code = file.readline(), file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn_once(str(error))
        return None
    if header != _header(key, code):
        _logger.warning('%s is damaged and will be compiled again', path)
        return None
    return code


def write(key: str, code: bytes) -> None:
    """Keep machine code, or say once why it cannot be kept."""
    try:
        folder = _own_folder()
        _remove_stale(folder)
        # Several processes may compile at once; a rename is never half done.
        part = folder / f'{key}.{os.getpid()}.part'
        try:
            part.write_bytes(_header(key, code) + code)
            part.chmod(0o600)
            part.replace(folder / f'{key}.cubin')
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        _warn_once(str(error))


def _remove_stale(folder: Path) -> None:
    for part in folder.glob('*.part'):
        # Another process may remove it first.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink()
