"""Checks of the arguments that several tools take alike."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def config_root() -> Path:
    """Return the folder of the configs: of the wheel, or of the checkout."""
    shipped = _PACKAGE / '.mim' / 'configs'
    return shipped if shipped.is_dir() else _PACKAGE.parent / 'configs'


def existing_config(path: str) -> str:
    """Return the path of a config file.

    Raises:
        argparse.ArgumentTypeError: If there is no such file; the message
            names the configs whose names are near.
    """
    if Path(path).is_file():
        return path
    if Path(path).exists():
        raise argparse.ArgumentTypeError(
            f'{path!r} is no file, but a folder or a device'
        )
    near = near_configs(path)
    hint = f'; did you mean {" or ".join(near)}?' if near else ''
    raise argparse.ArgumentTypeError(f'there is no file {path!r}{hint}')


def near_configs(path: str) -> list[str]:
    """Find up to three configs whose file name resembles that of `path`."""
    wanted = Path(path)
    known = [
        file
        for files in (config_root().rglob('*.py'), wanted.parent.glob('*.py'))
        for file in sorted(files)
        if '_base_' not in file.parts
    ]
    names = {file.stem: os.path.relpath(file) for file in known}
    stems = difflib.get_close_matches(wanted.stem, names, n=3, cutoff=0.5)
    return [names[stem] for stem in stems]


def check_arguments(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    config: str = 'config',
) -> None:
    """Exit as `parser` does if `args.config` or `args.cfg_options` is bad.

    Args:
        parser: The parser that read them.
        args: What it read.
        config: Name of the argument for the config in messages.
    """
    try:
        existing_config(args.config)
    except argparse.ArgumentTypeError as error:
        parser.error(f'argument {config}: {error}')
    check_options(parser, args.cfg_options)
    # The argument would take the option's place in silence.
    given = [pair.partition('=')[0] for pair in args.cfg_options]
    if 'launcher' in given and hasattr(args, 'launcher'):
        parser.error('argument --cfg-options: launcher: give --launcher')


def check_options(
    parser: argparse.ArgumentParser, pairs: Sequence[str]
) -> None:
    """Exit as `parser` does if one of `pairs` is not KEY=VALUE."""
    for pair in pairs:
        key, equals, _ = pair.partition('=')
        if not (key and equals):
            parser.error(f'argument --cfg-options: {pair!r} is not KEY=VALUE')
