"""The ablations: few lines, and the blocks that ablations.csv says."""

import csv
import functools
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from evmamba_mm import ARCHS

from .leaves import ROOT

pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')

FOLDER = ROOT / 'configs' / 'mmpretrain' / 'ablations'
LEAVES = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
NAME = re.compile(
    r'evmamba-(?P<size>[a-z]+)-(?P<blocks>[a-z0-9-]+)'
    r'_(?P<batch>\d+xb\d+)-amp-300e_in1k'
)
RESULTS = ROOT / 'tools' / 'paper' / 'results'


def read_rows(path):
    with (RESULTS / path).open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


# A line for each ablation: its blocks, and its parameters in millions where a
# count is known that is not this package's.
ROWS = {Path(row['config']).stem: row for row in read_rows('ablations.csv')}
every_ablation = pytest.mark.parametrize('stem', LEAVES)


def size_of(stem):
    match = NAME.fullmatch(stem)
    assert match, f'{stem} does not follow the grammar of names'
    return match['size']


@functools.cache
def load(stem):
    return Config.fromfile(LEAVES[stem])


@functools.cache
def load_full(size):
    """The published model of a size."""
    (path,) = FOLDER.parent.glob(f'evmamba-{size}_*-amp-300e_in1k.py')
    return path.stem, Config.fromfile(path)


def rows(*tables):
    for table in tables:
        yield from read_rows(f'paper/{table}.csv')


def test_every_ablation_has_its_line():
    paths = {path.relative_to(ROOT).as_posix() for path in LEAVES.values()}
    assert {row['config'] for row in ROWS.values()} == paths


def test_every_row_has_its_config():
    named = {}
    for table in ('table5', 'table6', 'table8'):
        for row in rows(table):
            assert (ROOT / row['config']).is_file()
            stem = Path(row['config']).stem
            named.setdefault(stem, set()).add(table.removeprefix('table'))
    for stem, row in ROWS.items():
        assert set(re.findall(r'\d+', row['row'])) == named.get(stem, set())


@pytest.mark.parametrize('table', ['table6', 'table8'])
def test_stages_of_a_row_are_those_of_its_config(table):
    words = {'EVSS': 'evss', 'InRes': 'inverted_residual'}
    default = [*['evss'] * 2, *['inverted_residual'] * 2]
    for row in rows(table):
        backbone = Config.fromfile(ROOT / row['config']).model.backbone
        printed = [words[row[f'stage{i}']] for i in range(1, 5)]
        assert backbone.get('block_types', default) == printed
        size = {'T': 'tiny', 'B': 'base'}[row['model'][-1]]
        assert backbone.arch == size


@every_ablation
def test_blocks_and_depths_are_those_of_the_line(stem):
    backbone = load(stem).model.backbone
    row = ROWS[stem]
    stages = [row[f'stage{i}'] for i in range(1, 5)]
    assert backbone.block_types == stages
    if isinstance(backbone.arch, str):
        assert backbone.arch == size_of(stem)
    depths = re.search(r'depths (\d+, \d+, \d+, \d+)', row['what'])
    if depths:
        named = isinstance(backbone.arch, str)
        arch = ARCHS[backbone.arch] if named else backbone.arch
        assert ', '.join(map(str, arch.depths)) == depths[1]


@every_ablation
def test_everything_but_the_backbone_is_the_default(stem):
    name, full = load_full(size_of(stem))
    ablation, default = (config.to_dict() for config in (load(stem), full))
    for config in (ablation, default):
        for key in ('arch', 'block_types'):
            config['model']['backbone'].pop(key, None)
        config['model']['head'].pop('in_channels')
    assert ablation == default
    assert name.split('_')[1] == stem.split('_')[1]


@every_ablation
def test_it_is_a_few_lines(stem):
    lines = LEAVES[stem].read_text().splitlines()
    assert len(lines) <= 15


@every_ablation
def test_parameters_and_a_forward(stem):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(load(stem).model).eval()
    count = sum(p.numel() for p in model.parameters())
    expected = ROWS[stem]['params_m']
    if expected:
        digits = len(expected.partition('.')[2])
        assert f'{count / 1e6:.{digits}f}' == expected
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
