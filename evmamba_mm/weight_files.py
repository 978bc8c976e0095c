"""Reads files of weights, and says what a file is that holds none."""

import contextlib
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

# Beginnings of files that are taken for checkpoints by mistake.
WEB_PAGE = (b'<',)
KNOWN_BEGINNINGS = {
    b'version https://git-lfs': 'is a pointer of Git LFS; run git lfs pull',
    b'\x1f\x8b': 'is a gzip archive; unpack it first',
    b'%PDF': 'is a PDF document',
    b'\x89PNG': 'is an image',
    b'\xff\xd8\xff': 'is an image',
}
CHUNK = 1 << 20


class BrokenWeightsError(ValueError):
    """A file that no weights can be read from; the message is one line."""


@contextlib.contextmanager
def file_named(path: str | Path) -> Iterator[None]:
    """Adds the file's name to an error about its weights.

    Raises:
        BrokenWeightsError: In place of one that does not name the file.
    """
    try:
        yield
    except BrokenWeightsError as error:
        if str(path) in str(error):
            raise
        raise BrokenWeightsError(f'{path}: {error}') from error


def read_weights(
    path: str | Path, map_location: Any = 'cpu'
) -> dict[str, Any]:
    """Read a checkpoint of torch or a safetensors file, running nothing in it.

    Which of the two it is, the content says. Checksums of torch's file are
    compared; safetensors files have none.

    Args:
        path: A local file.
        map_location: As torch.load takes it.

    Returns:
        What torch saved; of a safetensors file a dict of `state_dict` and
        `meta`, the file's metadata, JSON parsed.

    Raises:
        FileNotFoundError: If there is no such path.
        BrokenWeightsError: If it cannot be read or holds no weights.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f'there is no file {path}')
    if not path.is_file():
        # Reading a pipe would wait for ever.
        raise BrokenWeightsError(f'{path} is {_kind(path)}, not a checkpoint')
    try:
        with path.open('rb') as file:
            head = file.read(512)
    except OSError as error:
        raise BrokenWeightsError(
            f'{path} cannot be read: {error.strerror}'
        ) from error
    if _is_safetensors(head):
        return _read_safetensors(path, map_location)
    _check_sums(path)
    try:
        with warnings.catch_warnings():
            # About pickles that torch did not write.
            warnings.simplefilter('ignore')
            loaded = torch.load(path, map_location, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise BrokenWeightsError(
            f'{path} {_what_is(path, head, error)}'
        ) from error
    _check_content(path, loaded)
    return loaded


def _kind(path: Path) -> str:
    tests = {
        'a folder': path.is_dir,
        'a pipe': path.is_fifo,
        'a socket': path.is_socket,
    }
    return next((kind for kind, is_it in tests.items() if is_it()), 'a device')


def mismatch(message: str) -> str:
    """Shorten mmengine's list of keys to counts and examples, in a line."""
    parts = []
    for kind in ('unexpected key', 'missing keys'):
        found = re.search(rf'{kind} in source state_dict: (.+)', message)
        if found:
            keys = found[1].split(', ')
            parts.append(f'{len(keys)} {kind.split()[0]} ({keys[0]}, ...)')
    shapes = re.findall(r'size mismatch for (\S+?):', message)
    if shapes:
        parts.append(f'{len(shapes)} of another shape ({shapes[0]}, ...)')
    return ', '.join(parts) or ' '.join(message.split())[:300]


def no_floats(own: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Name the tensors, with dtypes, that would be cast to a module's floats.

    Integers and complex numbers are no weights; torch casts them in silence.

    Args:
        own: The module's state.
        given: What is to be loaded into it.
    """
    return [
        f'{key} of {given[key].dtype}'
        for key, value in own.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and isinstance(given.get(key), torch.Tensor)
        and not given[key].is_floating_point()
    ]


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], 'little')
    return head[8:9] == b'{' and length < 1 << 32


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f'{path} is a safetensors file; reading it needs safetensors: '
            'pip install safetensors'
        ) from error
    try:
        with safe_open(path, framework='pt', device='cpu') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BrokenWeightsError(
            f'{path} is a truncated or damaged safetensors file of '
            f'{path.stat().st_size:,} bytes; copy or download it again'
        ) from error
    loaded = dict(
        meta={key: _parsed(text) for key, text in metadata.items()},
        state_dict=tensors,
    )
    _check_content(path, loaded)
    if isinstance(map_location, (str, torch.device)):
        device = torch.device(map_location)
        loaded['state_dict'] = {k: v.to(device) for k, v in tensors.items()}
    return loaded


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_sums(path: Path) -> None:
    """Refuse changed bytes, which torch.load does not look for.

    A file that was written without checksums has a wrong one everywhere.
    """
    if not zipfile.is_zipfile(path):
        return
    good, bad = 0, []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                try:
                    with archive.open(name) as record:
                        while record.read(CHUNK):
                            pass
                    # The checksum of no bytes is right in any case.
                    good += archive.getinfo(name).file_size > 0
                except zipfile.BadZipFile as error:
                    if 'CRC' not in str(error):
                        raise
                    bad.append(name)
    except Exception as error:
        raise BrokenWeightsError(f'{path} {_damaged(path)}') from error
    if good and bad:
        raise BrokenWeightsError(
            f'{path} is damaged: bytes of {bad[0]} were changed after it was '
            'written; copy or download it again'
        )


def _damaged(path: Path) -> str:
    return (
        f'is truncated or damaged (a checkpoint of {path.stat().st_size:,} '
        'bytes that cannot be read to its end); copy or download it again'
    )


def _what_is(path: Path, head: bytes, error: Exception) -> str:
    """Say in a few words what kind of file could not be loaded."""
    if not head:
        return 'is empty (0 bytes); copy or download it again'
    for beginning, what in KNOWN_BEGINNINGS.items():
        if head.startswith(beginning):
            return what
    if head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(WEB_PAGE):
        return 'is a web page, not a checkpoint; download the file itself'
    if isinstance(error, UnpicklingError):
        name = re.search(r'GLOBAL ([\w.]+)', str(error))
        if name or re.search('asks for|reduce for|Can only', str(error)):
            what = f' ({name[1]})' if name else ''
            return (
                f'was refused: it holds more than tensors{what}, and loading '
                'it could run code'
            )
    if head.startswith(b'PK'):
        if zipfile.is_zipfile(path):
            return _what_zip_is(path)
        return _damaged(path)
    if isinstance(error, EOFError) or 'unexpected EOF' in str(error):
        return _damaged(path)
    if head.startswith(b'\x80'):
        return 'is a Python pickle that torch did not write, or damaged'
    if all(byte in b'\t\r\n' or 32 <= byte < 127 for byte in head):
        return 'is a text file, not a checkpoint'
    return f'is not a checkpoint; it begins with {head[:8].hex(" ")}'


def _what_zip_is(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any('/code/' in name or name.endswith('.json') for name in names):
        return (
            'holds a program (TorchScript or torch.export), not a checkpoint; '
            'save the state_dict of its model'
        )
    if any(name.endswith('/data.pkl') for name in names):
        return _damaged(path)
    return 'is a zip archive that torch did not write; unpack it first'


def _check_content(path: Path, loaded: Any) -> None:
    """Refuse what has no tensor under a key, nor in a dict under a key."""
    if loaded is None:
        raise BrokenWeightsError(f'{path} holds None, not a state dict')
    if not isinstance(loaded, dict):
        raise BrokenWeightsError(
            f'{path} holds a {type(loaded).__name__}, not a state dict'
        )
    weights = loaded.get('state_dict', loaded)
    if not isinstance(weights, Mapping):
        raise BrokenWeightsError(
            f'{path}: its state_dict is a {type(weights).__name__}, not a dict'
        )
    for key in weights:
        if not isinstance(key, str):
            raise BrokenWeightsError(
                f'{path} has a weight under the key {key!r}; keys must be '
                'names'
            )
    inner = [v for v in loaded.values() if isinstance(v, Mapping)]
    for mapping in [loaded, *inner]:
        if any(isinstance(v, torch.Tensor) for v in mapping.values()):
            return
    keys = ', '.join(map(str, list(loaded)[:8])) or 'none'
    raise BrokenWeightsError(
        f'{path} holds no weights, not one tensor; its keys are: {keys}'
    )
