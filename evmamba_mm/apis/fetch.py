"""Fetching a file of weights, and checking that it is the right one."""

import hashlib
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 60
CHUNK = 1 << 20


def fetch(url: str, target: str | Path, sha256: str | None = None) -> Path:
    """Fetch a file, unless it is there already; return its path.

    Args:
        url: Address of the file.
        target: Path to store it at.
        sha256: Hex digest that the file must have.

    Raises:
        ValueError: If the file cannot be fetched, or has another digest.
    """
    target = Path(target)
    if not target.is_file():
        download(url, target)
    check_sum(target, sha256)
    return target


def download(url: str, target: Path) -> None:
    """Fetch a file; a part of it never stands at `target`.

    Raises:
        ValueError: If the file cannot be fetched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + '.part')
    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer,
            part.open('wb') as file,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(
            f'the weights could not be fetched: {error}. Fetch {url} in '
            f'another way, put it at {target} and run this again'
        ) from error
    part.rename(target)


def check_sum(path: Path, expected: str | None) -> str:
    """Compare a file's SHA-256 with the expected one; return it.

    Raises:
        ValueError: If one is expected and the file has another.
    """
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if expected and found != expected:
        raise ValueError(
            f'{path} has the sha256 {found}, and not {expected}: delete it '
            'and fetch it again'
        )
    return found
