"""Which key of a config puts a file of a data set where it is not."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config

from .checks import datasets_of, prefixes_of
from .origins import ran_user


class MissingFileError(FileNotFoundError):
    """A file of a data set that is not there; the message is one line."""


@contextlib.contextmanager
def missing_images_explained(
    cfg: Config, splits: Sequence[str]
) -> Iterator[None]:
    """Adds the key of the folder to the error about one file in it.

    Raises:
        MissingFileError: In place of the system's error.
    """
    try:
        yield
    except FileNotFoundError as error:
        if ran_user(error):
            raise
        found = re.findall(r"No such file or directory: '(.+?)'", str(error))
        message = found and explain_missing(cfg, splits, found[-1])
        if not message:
            raise
        raise MissingFileError(message) from error


def explain_missing(
    cfg: Config, splits: Sequence[str], path: str
) -> str | None:
    """Say which key of the config puts a missing file where it is not."""
    folders = {}
    for split in splits:
        for where, dataset in datasets_of(cfg, split):
            root = dataset.get('data_root') or ''
            ends = {'data_root': '', **prefixes_of(dataset)}
            for key, value in ends.items():
                folder = os.path.join(root, value)
                if folder and Path(folder) in Path(path).parents:
                    folders[f'{where}.{key}'] = (folder, where, dataset)
    if not folders:
        return None
    key = max(folders, key=lambda name: len(Path(folders[name][0]).parts))
    folder, where, dataset = folders[key]
    annotations = dataset.get('ann_file')
    named = f' and {where}.ann_file names it' if annotations else ''
    return (
        f'there is no file {path!r}; {key} puts it in {folder!r}{named}. '
        f'Add the file, remove it from the data set, or give another '
        f'folder: --cfg-options {key}=FOLDER'
    )
