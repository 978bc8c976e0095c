"""Which files to read, and where each result goes."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

JPEG_SUFFIXES = ('.jpg', '.jpeg')
IMAGE_SUFFIXES = (
    *JPEG_SUFFIXES,
    *('.bmp', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'),
)
VIDEO_SUFFIXES = (
    *('.avi', '.m4v', '.mkv', '.mov'),
    *('.mp4', '.mpeg', '.mpg', '.webm'),
)
LEGAL = (
    f'images are {" ".join(IMAGE_SUFFIXES)}, videos {" ".join(VIDEO_SUFFIXES)}'
)


@dataclass(frozen=True)
class Collected:
    """The files found, their common folder, and how many others there were."""

    paths: list[Path]
    root: Path
    left_out: int = 0


@dataclass(frozen=True)
class Source:
    """A file to read, and the paths of its picture or video and its JSON."""

    path: Path
    target: Path
    json_path: Path

    @property
    def is_video(self) -> bool:
        """Whether the file is a video."""
        return is_video(self.path)


def is_video(path: Path) -> bool:
    """Return whether a path ends as videos do."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_legal(path: Path) -> bool:
    """Return whether a path ends as images or videos do."""
    return path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def is_readable(path: Path) -> bool:
    """Return whether a path is worth a look: an image, a video, or its link.

    A broken link is reported when it is read. To read a pipe or a device could
    wait for ever.
    """
    return is_legal(path) and (path.is_file() or not path.exists())


def real_path(path: Path) -> Path:
    """Resolve links, also those that lead to themselves."""
    return Path(os.path.realpath(path))


def collect(text: str, out_dir: Path) -> Collected:
    """Finds the images and videos that INPUT means.

    A path that exists is taken as it stands, even if it looks like a glob.
    """
    path = Path(text)
    if path.is_dir():
        return collect_folder(path, out_dir)
    if path.exists() and not path.is_file():
        raise ValueError(f'INPUT {text!r} is no file: a pipe or a device')
    if path.is_file():
        if not is_legal(path):
            raise ValueError(
                f'INPUT {text!r} has an unknown extension; {LEGAL}'
            )
        return Collected([path], path.parent)
    if glob.has_magic(text):
        return collect_glob(text)
    raise ValueError(
        f'INPUT {text!r} does not exist; legal are an image, a video, a '
        f'folder, or a glob in quotes'
    )


def collect_folder(folder: Path, out_dir: Path) -> Collected:
    """Finds every image and video below a folder.

    Skips hidden files and results of an earlier run in `out_dir`.
    """
    out_dir = out_dir.resolve()
    results_inside = folder.resolve() in out_dir.parents
    files = [
        path
        for path in sorted(folder.rglob('*'))
        if not path.is_dir()
        and not any(p.startswith('.') for p in path.relative_to(folder).parts)
        and not (results_inside and out_dir in real_path(path).parents)
    ]
    paths = [path for path in files if is_readable(path)]
    if not paths:
        raise ValueError(
            f'INPUT {str(folder)!r} is a folder without images or videos, '
            f'{len(files)} other files are in it; {LEGAL}'
        )
    return Collected(paths, folder, len(files) - len(paths))


def collect_glob(pattern: str) -> Collected:
    """Find every image and video that a pattern matches.

    Raises:
        ValueError: If it matches none.
    """
    found = map(Path, sorted(glob.glob(pattern, recursive=True)))
    matches = [path for path in found if not path.is_dir()]
    paths = [path for path in matches if is_readable(path)]
    if not paths:
        raise ValueError(
            f'INPUT {pattern!r} matches no image or video, '
            f'{len(matches)} other files match it; {LEGAL}'
        )
    parents = [os.path.abspath(path.parent) for path in paths]
    root = Path(os.path.commonpath(parents))
    return Collected(paths, root, len(matches) - len(paths))


def plan(collected: Collected, out_dir: Path) -> list[Source]:
    """Gives each file its own place below `out_dir`.

    Folders below the common one are kept. `a.jpg` becomes `a.jpg`, `a.bmp`
    becomes `a.png`; where both exist, both keep their full name in front.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f'--out-dir {str(out_dir)!r} is a file, not a folder')
    root = os.path.abspath(collected.root)
    relative = [
        Path(os.path.relpath(os.path.abspath(path), root))
        for path in collected.paths
    ]
    count = Counter(path.with_suffix('') for path in relative)
    sources = []
    for path, inside in zip(collected.paths, relative, strict=True):
        alone = count[inside.with_suffix('')] == 1
        name = inside.stem if alone else inside.name
        stem = out_dir / inside.parent / name
        json_suffix = '.jsonl' if is_video(path) else '.json'
        sources.append(
            Source(
                path,
                stem.with_name(name + target_suffix(path)),
                stem.with_name(name + json_suffix),
            )
        )
    refuse_overwriting(sources)
    return sources


def target_suffix(path: Path) -> str:
    """Return the ending of the picture or video of an input."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return '.mp4'
    return '.jpg' if suffix in JPEG_SUFFIXES else '.png'


def refuse_overwriting(sources: Sequence[Source]) -> None:
    """Check where the results go.

    Raises:
        ValueError: If two go to one place, or one lies beside its input.
    """
    owner = {}
    for source in sources:
        for target in (source.target, source.json_path):
            if target in owner:
                raise ValueError(
                    f'{str(owner[target])!r} and {str(source.path)!r} would '
                    f'both be written to {str(target)!r}; rename one'
                )
            owner[target] = source.path
        if source.target.parent.resolve() == source.path.parent.resolve():
            raise ValueError(
                f'--out-dir: the result of {str(source.path)!r} would lie in '
                f'the folder of the input; choose another folder'
            )
