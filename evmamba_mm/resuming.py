"""Which checkpoint of a work folder a training goes on from."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .weight_files import BrokenWeightsError, read_weights

POINTER = 'last_checkpoint'
# It has no state of an optimiser.
BEST = 'best_'
# Names that trainings give their checkpoints.
REGULAR = re.compile(r'(epoch|iter)_\d+\.pth|interrupted\.pth')
HINT = (
    'resume from another file, or move these away (or choose another work '
    'folder) to start from the beginning'
)


def newest_checkpoint(folder: str | Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that loads, by the time it was written.

    Looked at are the folder, the file that its `last_checkpoint` names, and
    the folder of that file. Best checkpoints do not count: they have no state
    of the optimiser.

    Args:
        folder: Work folder of a training.

    Returns:
        The file, None if nothing was ever saved there, and what is to be
        told about files that were passed over, a line each.

    Raises:
        BrokenWeightsError: If something was saved, and nothing of it loads.
    """
    folder = Path(folder)
    named = named_by_pointer(folder)
    waiting = _by_time(_candidates(folder, named))
    broken: dict[Path, str] = {}
    for path in waiting:
        try:
            missing = missing_for_resume(read_weights(path))
        except (BrokenWeightsError, FileNotFoundError) as error:
            broken[path] = str(error)
            continue
        if missing:
            continue
        return path, _notes(folder, named, path, broken)
    if broken:
        raise BrokenWeightsError(
            f'no checkpoint in {folder} loads: {"; ".join(broken.values())}. '
            f'Please {HINT}'
        )
    weights = [path for path in waiting if REGULAR.fullmatch(path.name)]
    weights += [path for path in waiting if path == named]
    weights += sorted(folder.glob(f'{BEST}*.pth'))
    if weights:
        raise BrokenWeightsError(
            f'{folder} has nothing but {weights[0].name}, which cannot be '
            f'resumed: start from its weights by load_from, or {HINT}'
        )
    if (folder / POINTER).is_file():
        what = f'names {named}' if named else 'is empty or garbled'
        raise BrokenWeightsError(
            f'{folder / POINTER} {what}, and there is no checkpoint: {HINT}'
        )
    return None, []


def trained_before(folder: str | Path) -> Path | None:
    """Return a checkpoint that a training left in a folder, or None."""
    files = sorted(Path(folder).glob('*.pth'))
    return next((x for x in files if REGULAR.fullmatch(x.name)), None)


def missing_for_resume(checkpoint: Mapping[str, Any]) -> list[str]:
    """List the keys without which mmengine cannot resume."""
    meta = checkpoint.get('meta')
    found = meta if isinstance(meta, Mapping) else {}
    missing = [
        f'meta.{key}'
        for key in ('epoch', 'iter')
        if not isinstance(found.get(key), int) or found[key] < 0
    ]
    if not isinstance(checkpoint.get('message_hub'), Mapping):
        missing.append('message_hub')
    return missing


def named_by_pointer(folder: Path) -> Path | None:
    """Return what the `last_checkpoint` of a folder names, if it can be."""
    try:
        text = (folder / POINTER).read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not text or not text.isprintable() or len(text) > 4096:
        return None
    return Path(text)


def _candidates(folder: Path, named: Path | None) -> list[Path]:
    folders = {folder}
    if named is not None:
        folders.add(named.parent)
    found = {
        path.absolute(): path
        for place in sorted(folders)
        if place.is_dir()
        for path in place.glob('*.pth')
        if not path.name.startswith(BEST)
    }
    return list(found.values())


def _by_time(paths: Iterable[Path]) -> list[Path]:
    """Sort checkpoints, the newest first, by what stands in them."""

    def age(path: Path) -> tuple:
        meta = _meta(path)
        when = str(meta.get('time', ''))
        done = meta.get('iter', -1)
        # Of a link that leads nowhere, too.
        changed = path.lstat().st_mtime
        if not meta:
            # It will not load either; its place only orders the report.
            return ('9', 0, changed)
        return (when, done if isinstance(done, int) else -1, changed)

    return sorted(paths, key=age, reverse=True)


def _meta(path: Path) -> Mapping:
    """Read a checkpoint's meta and nothing of its tensors."""
    if not path.is_file():
        # Reading a pipe would wait for ever.
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            loaded = torch.load(path, 'cpu', weights_only=True, mmap=True)
        meta = loaded['meta']
    except Exception:
        return {}
    return meta if isinstance(meta, Mapping) else {}


def _notes(
    folder: Path, named: Path | None, taken: Path, broken: Mapping[Path, str]
) -> list[str]:
    """Say in a line why it is not simply the file that the pointer names."""
    # An old broken file beside newer ones concerns nobody.
    notes = [
        text
        for path, text in broken.items()
        # Of a link itself: it may lead nowhere.
        if path == named or path.lstat().st_mtime >= taken.stat().st_mtime
    ]
    pointer = folder / POINTER
    if named is None:
        state = 'is empty or garbled' if pointer.exists() else 'is not there'
        notes.append(f'{pointer} {state}')
    elif not named.is_file():
        notes.append(f'{pointer} names {named}, which is not there')
    return [f'{"; ".join(notes)}; resuming from {taken}'] if notes else []
