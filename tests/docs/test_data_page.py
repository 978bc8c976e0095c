"""The configs of docs/data.md."""

import csv
import re

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from .follow import ROOT
from .page import read_blocks

pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
BLOCKS = {
    block.file_name: block
    for block in read_blocks(ROOT / 'docs' / 'data.md')
    if block.language == 'python'
}


@pytest.fixture
def config(tmp_path, request):
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    path = tmp_path / request.param
    path.write_text(BLOCKS[request.param].text)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield Config.fromfile(path)


@pytest.mark.parametrize('config', ['image_at_a_time.py'], indirect=True)
def test_images_are_augmented_one_at_a_time(config):
    settings = config.train_dataloader
    dataset = DATASETS.build({**settings.dataset, 'lazy_init': True})
    names = [type(step).__name__ for step in dataset.pipeline.transforms]
    assert names[1:5] == [
        'RandomResizedCrop',
        'RandomFlip',
        'RandAugment',
        'RandomErasing',
    ]
    assert settings.collate_fn.type == 'pseudo_collate'
    assert MODELS.build(config.data_preprocessor).image_augments == []


@pytest.mark.parametrize('config', ['my_small_data.py'], indirect=True)
def test_a_folder_of_ones_own_is_held_in_memory(config):
    for part in ('train', 'val', 'test'):
        settings = config[f'{part}_dataloader'].dataset
        held = part != 'test'
        assert settings.type == ('CachedDataset' if held else 'CustomDataset')
        own = settings.dataset if held else settings
        assert own.data_root == 'data/mine'
        assert own.data_prefix == ('train' if part == 'train' else 'val')
        DATASETS.build({**settings, 'lazy_init': True})
    assert config.model.head.num_classes == 10
    augments = MODELS.build(config.data_preprocessor).image_augments
    assert len(augments) == 4


def test_the_table_is_that_of_the_file():
    path = ROOT / 'tools/paper/results/benchmark/cpu_data.csv'
    with path.open(newline='') as file:
        measured = {
            (row['mode'], row['phase']): f'{float(row["ms"]):.2f}'
            for row in csv.DictReader(file)
            if row['batch'] == '1'
        }
    text = (ROOT / 'docs' / 'data.md').read_text()
    block = re.search(
        r'<!-- pipeline -->\n(.*?)<!-- /pipeline -->', text, re.DOTALL
    )[1]
    head, _, *lines = [
        [cell.strip(' `') for cell in line.strip('|').split('|')]
        for line in block.splitlines()
    ]
    shown = {
        (mode, step): cell
        for step, *cells in lines
        for mode, cell in zip(head[1:], cells, strict=True)
        if cell
    }
    assert shown == measured


def test_every_block_is_checked():
    assert set(BLOCKS) == {'image_at_a_time.py', 'my_small_data.py'}
