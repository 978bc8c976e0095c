"""Config files, read so that a mistake in one is a line that names it."""

import os
import traceback
from collections.abc import Mapping
from pathlib import Path

import mmengine.config.config
from mmengine.config import Config
from mmengine.fileio.handlers.yaml_handler import yaml

from .own_files import is_own

READER = mmengine.config.config.__file__
MISTAKES = (
    *(AttributeError, ImportError, KeyError, NameError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
    yaml.YAMLError,
)


def read_config(path: str | Path) -> Config:
    """Read a config file and its bases.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If one of them cannot be read. An error in a module of
            the user's own that a config imports is raised as it is.
    """
    try:
        return Config.fromfile(path)
    except FileNotFoundError as error:
        place = _place(error, path)
        missing = error.filename
        if None in (place, missing) or Path(missing) == Path(path):
            raise
        raise FileNotFoundError(
            f'config {place}: there is no file {missing!r}'
        ) from error
    except MISTAKES as error:
        place = _place(error, path)
        if place is None:
            raise
        raise ValueError(f'config {place}: {_said(error)}') from error


def _said(error: Exception) -> str:
    """Return a message without what surrounds it."""
    if isinstance(error, AttributeError | TypeError):
        return _of_content(error) or _in_a_line(error)
    if type(error) is KeyError:
        said = _in_a_line(error.args[0])
        # That of mmengine is a sentence.
        return said if ' ' in said else f'there is no {said!r}'
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, yaml.MarkedYAMLError):
        return _in_a_line(f'{error.context or ""} {error.problem}')
    if not isinstance(error, ImportError):
        return _in_a_line(error)
    # mmengine's own messages list sys.path.
    while error.__context__ is not None:
        error = error.__context__
    return f'{error}; install it, or name its folder in PYTHONPATH'


def _in_a_line(said: object) -> str:
    return ' '.join(str(said).split())


def _of_content(error: Exception) -> str | None:
    """Say what a file of YAML or JSON holds in place of named settings."""
    found = [
        frame.f_locals
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == READER
    ]
    contents = [values for values in found if 'cfg_dict' in values]
    content = contents[-1]['cfg_dict'] if contents else {}
    if not isinstance(content, Mapping):
        what = 'nothing' if content is None else type(content).__name__
        return f'it holds no keys with values ({what})'
    for key in content:
        if not isinstance(key, str):
            return f'its key {key!r} is no name'
    for values in found:
        base = values.get('base_cfg_path', '')
        if not isinstance(base, str):
            return f'_base_ must name files, got {base!r}'
    return None


def _place(error: Exception, path: str | Path) -> str | None:
    """Say which file, and line, a mistake is in; None if in no config."""
    # The first is the call of mmengine.
    _, *walked = traceback.walk_tb(error.__traceback__)
    frames = [frame for frame, _ in walked]
    names = [frame.f_code.co_filename for frame in frames]
    runs = [
        index
        for index in range(1, len(frames))
        if names[index - 1] == READER
        and frames[index].f_code.co_name == '<module>'
    ]
    inner = names[runs[-1] + 1 :] if runs else names
    if any(map(is_own, inner)):
        return None
    if runs:
        return f'{names[runs[-1]]}, line {walked[runs[-1]][1]}'
    files = [
        str(frame.f_locals.get('filename'))
        for frame, name in zip(frames, names, strict=True)
        if name == READER
    ]
    # mmengine parses a copy of a file, which it has deleted since.
    files = [path, *filter(os.path.exists, files)]
    line = _line(error)
    return f'{files[-1]}, line {line}' if line else str(files[-1])


def _line(error: Exception) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    mark = getattr(error, 'problem_mark', None)
    return mark and mark.line + 1
