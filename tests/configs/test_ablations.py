"""The ablations of Tables 5, 6 and 8: few lines, and the blocks they name."""

import csv
import functools
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from .leaves import ROOT

pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')

FOLDER = ROOT / 'configs' / 'mmpretrain' / 'ablations'
LEAVES = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
NAME = re.compile(
    r'evmamba-(?P<size>tiny|base)-(?P<blocks>[a-z0-9-]+)'
    r'_(?P<batch>16xb128|16xb64)-amp-300e_in1k'
)
SCAN, CONVOLUTION = 'evss', 'inverted_residual'
BLOCKS = {
    'es2d': ['es2d'] * 4,
    'es2d-deep': ['es2d'] * 4,
    'evss': [SCAN] * 4,
    'inres': [CONVOLUTION] * 4,
    'early-inres': [CONVOLUTION] * 2 + [SCAN] * 2,
    'ss2d': ['ss2d'] * 4,
}
# In millions, of a count that is not this package's.
PARAMS = {
    ('tiny', 'es2d'): '4.813',
    ('tiny', 'evss'): '5.424',
    ('tiny', 'inres'): '6.470',
    ('tiny', 'early-inres'): '5.400',
    ('tiny', 'ss2d'): '2.399',
    ('base', 'es2d'): '22.89',
    ('base', 'es2d-deep'): '25.29',
    ('base', 'evss'): '26.232',
    ('base', 'inres'): '33.842',
    ('base', 'ss2d'): '16.34',
}
LEAF = {
    'tiny': 'evmamba-tiny_16xb128-amp-300e_in1k',
    'base': 'evmamba-base_16xb64-amp-300e_in1k',
}
# Table 1 does not print 2,2,11,2, nor the widths of the baselines.
OTHER_SIZES = {
    ('tiny', 'ss2d'): ((32, 64, 128, 256), (2, 2, 4, 2)),
    ('base', 'ss2d'): ((80, 160, 320, 640), (2, 2, 9, 2)),
    ('base', 'es2d-deep'): ((96, 192, 384, 768), (2, 2, 11, 2)),
}
every_ablation = pytest.mark.parametrize('stem', LEAVES)


def key(stem):
    match = NAME.fullmatch(stem)
    assert match, f'{stem} does not follow the grammar of names'
    return match['size'], match['blocks']


@functools.cache
def load(stem):
    return Config.fromfile(LEAVES[stem])


@functools.cache
def load_leaf(size):
    return Config.fromfile(FOLDER.parent / f'{LEAF[size]}.py')


def rows(*tables):
    for table in tables:
        path = ROOT / 'results' / 'paper' / f'{table}.csv'
        with path.open(newline='', encoding='utf-8') as file:
            yield from csv.DictReader(file)


def test_there_is_an_ablation_for_every_kind_of_both_sizes():
    kinds = {(size, word) for size in LEAF for word in BLOCKS}
    assert {key(stem) for stem in LEAVES} == kinds - {('tiny', 'es2d-deep')}


def test_every_row_has_its_config():
    configs = [row['config'] for row in rows('table5', 'table6', 'table8')]
    assert all((ROOT / config).is_file() for config in configs)
    used = {
        config.rpartition('/')[2].removesuffix('.py') for config in configs
    }
    unused = set(LEAVES) - used
    # The depths of base with ES2D alone, and what Table 6 has of tiny only.
    assert {key(stem) for stem in unused} == {
        ('base', 'es2d'),
        ('base', 'early-inres'),
    }


@pytest.mark.parametrize('table', ['table6', 'table8'])
def test_stages_of_a_row_are_those_of_its_config(table):
    words = {'EVSS': SCAN, 'InRes': CONVOLUTION}
    default = [SCAN, SCAN, CONVOLUTION, CONVOLUTION]
    for row in rows(table):
        backbone = Config.fromfile(ROOT / row['config']).model.backbone
        printed = [words[row[f'stage{i}']] for i in range(1, 5)]
        assert backbone.get('block_types', default) == printed
        size = {'T': 'tiny', 'B': 'base'}[row['model'][-1]]
        assert backbone.arch == size


@every_ablation
def test_blocks_are_those_of_the_name(stem):
    backbone = load(stem).model.backbone
    assert backbone.block_types == BLOCKS[key(stem)[1]]
    if key(stem) in OTHER_SIZES:
        sizes = OTHER_SIZES[key(stem)]
        assert tuple(backbone.arch.channels) == sizes[0]
        assert tuple(backbone.arch.depths) == sizes[1]
    else:
        assert backbone.arch == key(stem)[0]


@every_ablation
def test_everything_but_the_backbone_is_the_default(stem):
    ablation, default = (
        config.to_dict() for config in (load(stem), load_leaf(key(stem)[0]))
    )
    for config in (ablation, default):
        for name in ('arch', 'block_types'):
            config['model']['backbone'].pop(name, None)
        config['model']['head'].pop('in_channels')
    assert ablation == default
    batch = NAME.fullmatch(stem)['batch']
    assert LEAF[key(stem)[0]].split('_')[1].startswith(f'{batch}-amp')


@every_ablation
def test_it_is_a_few_lines(stem):
    lines = LEAVES[stem].read_text().splitlines()
    assert len(lines) <= 15


@every_ablation
def test_parameters_and_a_forward(stem):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(load(stem).model).eval()
    count = sum(p.numel() for p in model.parameters())
    expected = PARAMS.get(key(stem))
    if expected is not None:
        digits = len(expected.partition('.')[2])
        assert f'{count / 1e6:.{digits}f}' == expected
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@every_ablation
def test_it_is_documented(stem):
    text = (ROOT / 'docs' / 'paper_and_release.md').read_text()
    assert f'{stem}.py' in text
