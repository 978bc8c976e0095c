"""A small data set for detection, segmentation and classification.

Made in seconds, without a download, from images that scikit-learn ships:
handwritten digits drawn over crops of two photographs. The val scenes use
digits and photograph parts that no train scene uses.

Layout::

    fingerprint.json
    annotations/instances_{train,val}.json   COCO, masks as RLE
    scenes/{train,val}/000000.png            RGB
    segmaps/{train,val}/000000.png           0 background, 1 + digit
    classification/{train,val}/7/00042.png   one digit each
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from .digit_files import DataWriter
from .digit_render import draw_scene, draw_single
from .digit_sources import Sources, load_sources

CLASSES = tuple(str(digit) for digit in range(10))
_MARKER = 'fingerprint.json'
_LAYOUT = 1
_SINGLE_SIZE = 64


def make_digit_scenes(
    out: str | os.PathLike,
    num_train: int = 400,
    num_val: int = 100,
    size: int = 160,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write the data set.

    The same arguments give the same pixels and annotations on every
    machine. The files are written beside ``out`` and moved there when all of
    them are complete.

    Args:
        out: Folder to make. Missing, empty, or with ``overwrite`` an earlier
            data set of this kind.
        num_train: Train scenes. The classification images are independent
            of it: one of each handwritten digit.
        num_val: Val scenes.
        size: Side of the square scenes in pixels, 64 to 1024.
        seed: Chooses digits, places, colours and crops; not the split.
        overwrite: Replace an earlier data set of this kind.

    Returns:
        ``out`` as a path.

    Raises:
        ValueError: If a number is out of range or ``out`` holds something
            that may not be replaced.
        ImportError: If scikit-learn is missing.
    """
    settings = {
        'num_train': _checked('num_train', num_train, 1, 100_000),
        'num_val': _checked('num_val', num_val, 1, 100_000),
        'size': _checked('size', size, 64, 1024),
        'seed': _checked('seed', seed, 0, 2**32 - 1),
    }
    out = Path(out)
    _check_out(out, overwrite)
    sources = load_sources()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        digest = _write(partial, sources, settings)
        marker = {'layout': _LAYOUT, 'sha256': digest, **settings}
        text = json.dumps(marker, indent=2) + '\n'
        (partial / _MARKER).write_text(text)
        partial.chmod(0o755)
        _move(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def is_digit_scenes(root: str | os.PathLike) -> bool:
    """Whether ``root`` holds a complete data set of the present layout."""
    try:
        read_fingerprint(root)
    except ValueError:
        return False
    return True


def read_fingerprint(root: str | os.PathLike) -> dict[str, int | str]:
    """Settings and content hash of a data set.

    The hash covers decoded pixels and annotations, so it does not depend on
    the version of the PNG encoder.

    Raises:
        ValueError: If ``root`` is no complete data set of this layout.
    """
    path = Path(root) / _MARKER
    try:
        marker = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f'root={str(root)!r} is not a complete digit data set: '
            f'{path} is missing or unreadable'
        ) from error
    if not isinstance(marker, dict) or marker.get('layout') != _LAYOUT:
        raise ValueError(
            f'root={str(root)!r} is not a digit data set of layout '
            f'{_LAYOUT}; create it again'
        )
    return marker


def _checked(name: str, value: int, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f'{name}={value!r} must be an integer')
    if not low <= value <= high:
        raise ValueError(f'{name}={value} must be within {low} and {high}')
    return int(value)


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f'out={str(out)!r} is a file, not a folder')
    if not any(out.iterdir()):
        return
    # Only a folder with the marker is ours to delete.
    if not (out / _MARKER).is_file():
        raise ValueError(
            f'out={str(out)!r} is not empty and holds no digit data set; '
            'choose another folder'
        )
    if not overwrite:
        raise ValueError(
            f'out={str(out)!r} already holds a digit data set; '
            'choose another folder or overwrite it'
        )


def _move(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    # An old set must lose its marker before anything else goes.
    (out / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(out)
    partial.rename(out)


def _write(
    root: Path, sources: dict[str, Sources], settings: dict[str, int]
) -> str:
    """Write every file but the marker and return the content's hash."""
    writer = DataWriter(root, CLASSES)
    streams = np.random.SeedSequence(settings['seed']).spawn(4)
    for number, split in enumerate(('train', 'val')):
        rng = np.random.default_rng(streams[2 * number])
        scenes = [
            draw_scene(sources[split], settings['size'], rng)
            for _ in range(settings[f'num_{split}'])
        ]
        writer.write_scenes(split, scenes)
        rng = np.random.default_rng(streams[2 * number + 1])
        singles = [
            draw_single(sources[split], pick, _SINGLE_SIZE, rng)
            for pick in range(len(sources[split].digits))
        ]
        writer.write_singles(split, singles, sources[split])
    return writer.hexdigest()
