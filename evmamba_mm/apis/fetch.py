"""Fetching files of weights, and checking that they are the right ones."""

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

import torch
from rich.console import Console
from rich.progress import wrap_file

from ..hub import RELEASED, Release
from .convert import convert_checkpoint

TIMEOUT_SECONDS = 60
CHUNK = 1 << 20
ENDINGS = ('.ckpt', '.pth', '.pt', '.tar', '.bin', '.safetensors')


def fetch_released(
    arch: str, target: str | Path | None = None, ema: bool = False
) -> Path:
    """Fetch the released weights of a size and convert them, unless there.

    The released file is stored beside the converted one. A transfer that
    stops is continued by the next call. ``HF_ENDPOINT`` names a mirror.

    Args:
        arch: 'tiny', 'small' or 'base'.
        target: File to write; without it one in the folder where torch.hub
            stores checkpoints.
        ema: Whether to take the averaged weights.

    Raises:
        ValueError: If the arch is another, or the file cannot be fetched, has
            another SHA-256 than its page says, or cannot be converted.
    """
    if arch not in RELEASED:
        raise ValueError(
            f'arch must be one of {", ".join(RELEASED)}, got {arch!r}'
        )
    if target is None:
        folder = Path(torch.hub.get_dir(), 'checkpoints')
        average = '-ema' if ema else ''
        target = folder / f'evmamba-{arch}{average}_in1k.pth'
    target = Path(target)
    if target.is_file():
        return target
    release = RELEASED[arch]
    url, digest = locate(release)
    source = fetch(url, target.parent / release.file, digest)
    if release.sha256 is None:
        found = digest or check_sum(source, None)
        print(f'{source}: sha256 {found}', file=sys.stderr)
    convert_checkpoint(source, target, ema=ema, arch=arch)
    return target


def locate(release: Release) -> tuple[str, str | None]:
    """Ask the release's page for its file; return address and SHA-256.

    Raises:
        ValueError: If the page cannot be read, or has no or several files of
            weights of other names than the expected one.
    """
    host = os.environ.get('HF_ENDPOINT', 'https://huggingface.co')
    listing = f'{host}/api/models/{release.repository}/tree/main'
    try:
        with urllib.request.urlopen(listing, timeout=TIMEOUT_SECONDS) as page:
            entries = json.load(page)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(
            f'the list of files of {release.page} cannot be read: {error}. '
            'Download the file in another way and convert it with tools/'
            'model_converters/convert_checkpoint.py'
        ) from error
    files = {entry['path']: entry for entry in entries}
    names = [name for name in files if name.endswith(ENDINGS)]
    if release.file in files:
        names = [release.file]
    if len(names) != 1:
        raise ValueError(
            f'{release.page} should have {release.file} or one other file of '
            f'weights; it has {", ".join(files)}'
        )
    # Large files are stored under their SHA-256.
    found = files[names[0]].get('lfs', {}).get('oid')
    url = f'{host}/{release.repository}/resolve/main/{quote(names[0])}'
    return url, release.sha256 or found


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
    """Fetch a file; what is there of it never stands at `target`.

    What an earlier call has fetched stands in `target` with '.part' added,
    and is not fetched again where the server can send the rest.

    Raises:
        ValueError: If the file cannot be fetched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + '.part')
    try:
        fetch_rest(url, part)
    except (OSError, HTTPException) as error:
        raise ValueError(
            f'the weights could not be fetched: {error}. Run this again to '
            f'continue, or fetch {url} in another way, put it at {target} '
            'and run this again'
        ) from error
    part.rename(target)


def fetch_rest(url: str, part: Path) -> None:
    """Append to a file what it lacks.

    Raises:
        OSError: If the transfer stops before the end.
    """
    start = part.stat().st_size if part.is_file() else 0
    headers = {'Range': f'bytes={start}-'} if start else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # There is nothing behind the part: it is whole, or of another file.
        part.unlink()
        return fetch_rest(url, part)
    with answer:
        start = start if getattr(answer, 'status', None) == 206 else 0
        rest = int(answer.headers.get('Content-Length') or 0)
        bar = wrap_file(
            answer,
            rest,
            description=f'fetching {part.stem}',
            console=Console(stderr=True),
        )
        with bar as reader, part.open('ab' if start else 'wb') as file:
            while chunk := reader.read(CHUNK):
                file.write(chunk)
    found = part.stat().st_size
    if rest and found != start + rest:
        raise OSError(f'{found} of {start + rest} bytes arrived')


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
