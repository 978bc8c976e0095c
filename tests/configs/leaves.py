"""The configs, and what their names say.

A leaf is a config that is trained with; what lies in `_base_` is shared.
"""

import copy
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from mmengine.config import Config
from mmengine.fileio import load as load_file

ROOT = Path(__file__).parents[2]
HOSTS = ('mmpretrain', 'mmdet', 'mmseg')
LEAVES = {
    path.stem: path
    for host in HOSTS
    for path in sorted((ROOT / 'configs' / host).glob('*.py'))
}

GRAMMAR = re.compile(
    r'((?P<method>[a-z-]+)_)?'
    r'evmamba-(?P<size>[a-z]+)'
    r'(_(?P<neck>[a-z]+))?'
    r'_(?P<gpus>\d+)xb(?P<images>\d+)'
    r'(?P<tricks>(-[a-z]+)*)'
    r'-(?P<schedule>\d+[xek])'
    r'_(?P<dataset>[a-z0-9]+)'
    r'(-(?P<height>\d+)x(?P<width>\d+))?'
)


@dataclass(frozen=True)
class Name:
    """The fields of a config's name; those that it lacks are None."""

    method: str | None
    size: str
    neck: str | None
    gpus: int
    images: int
    tricks: tuple[str, ...]
    schedule: str
    dataset: str
    crop: tuple[int, int] | None


def read_name(stem):
    """Takes the name of a config apart; fails on one against the grammar."""
    match = GRAMMAR.fullmatch(stem)
    if match is None:
        pytest.fail(f'{stem} does not follow the grammar of names')
    crop = match['height'] and (int(match['height']), int(match['width']))
    return Name(
        method=match['method'],
        size=match['size'],
        neck=match['neck'],
        gpus=int(match['gpus']),
        images=int(match['images']),
        tricks=tuple(match['tricks'].split('-')[1:]),
        schedule=match['schedule'],
        dataset=match['dataset'],
        crop=crop,
    )


_load_file_once = functools.cache(load_file)


@functools.cache
def _load(stem):
    # mmengine reads every metafile of a host anew for each base of it.
    with mock.patch('mmengine.config.utils.load', _load_file_once):
        return Config.fromfile(LEAVES[stem])


def load(stem):
    """A config of one's own, to be changed at will."""
    host = LEAVES[stem].parent.name
    pytest.importorskip(host, reason=f'{host} is not installed')
    return copy.deepcopy(_load(stem))
