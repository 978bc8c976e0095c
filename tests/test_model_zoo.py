"""The metafiles say of each config what the config and the tables say."""

import csv
import functools
import re
from pathlib import Path
from unittest import mock

import pytest
import yaml
from mmengine.config import Config
from mmengine.fileio import load as load_file

from evmamba_mm import hub

from .test_packaging import installed, mim, source, wheel  # noqa: F401

ROOT = Path(__file__).parent.parent
HOSTS = ('mmdet', 'mmpretrain', 'mmseg')
PAGES = 'https://huggingface.co/TerryPei/EfficientVMamba-'
# Where a metric of the metafile stands in the paper's tables.
COLUMNS = {
    'Top 1 Accuracy': 'top1',
    'box AP': ('ap', 'box_ap'),
    'mask AP': 'mask_ap',
    'mIoU': 'miou_ss',
    'mIoU(ms+flip)': 'miou_ms',
}


def metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for path in index['Import']:
        yield path, yaml.safe_load((ROOT / path).read_text())


def models():
    return [model for _, file in metafiles() for model in file['Models']]


def rows(path):
    file = ROOT / 'tools' / 'paper' / 'results' / path
    with file.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


MODELS = {model['Name']: model for model in models()}
RELEASED = {row['config']: row for row in rows('released_weights.csv')}
COUNTS = {row['config']: row for row in rows('computed/configs.csv')}
_load_file_once = functools.cache(load_file)
every_model = pytest.mark.parametrize('name', MODELS)


def test_the_index_names_the_metafile_of_every_folder():
    paths = [path for path, _ in metafiles()]
    # Of the trainings in evidence, no weights are kept.
    folders = [
        path
        for path in (ROOT / 'configs').iterdir()
        if path.is_dir() and path.name != 'evidence'
    ]
    assert sorted(paths) == sorted(
        f'configs/{folder.name}/metafile.yml' for folder in folders
    )
    assert {f'configs/{host}/metafile.yml' for host in HOSTS} <= set(paths)


def test_a_metafile_lists_its_own_folder():
    for path, file in metafiles():
        folder = path.removesuffix('metafile.yml')
        assert all(m['Config'].startswith(folder) for m in file['Models'])
        listed = {m['Config'] for m in file['Models']}
        found = {
            config.relative_to(ROOT).as_posix()
            for config in (ROOT / folder).rglob('*.py')
            if '_base_' not in config.parts
        }
        assert listed == found


def test_collections():
    for _, file in metafiles():
        names = {collection['Name'] for collection in file['Collections']}
        assert names == {model['In Collection'] for model in file['Models']}


@every_model
def test_config_and_collection(name):
    model = MODELS[name]
    path = ROOT / model['Config']
    assert path.stem == name
    host = path.relative_to(ROOT / 'configs').parts[0]
    if host in HOSTS:
        pytest.importorskip(host, reason=f'{host} is not installed')
    # mmengine reads every metafile of a host anew for each base of it.
    with mock.patch('mmengine.config.utils.load', _load_file_once):
        config = Config.fromfile(path)
    assert model['In Collection'] == config.model.backbone.type


@every_model
def test_counts_are_those_of_the_tables(name):
    model = MODELS[name]
    metadata = model['Metadata']
    if model['Config'].startswith('configs/demo/'):
        assert set(metadata) == {'Training Data'}
        return
    count = COUNTS[model['Config']]
    assert metadata['Parameters'] == int(count['params'])
    assert metadata['FLOPs'] == int(count['flops'])


def printed_results(config):
    """What the paper prints for a config, as (metric, value)."""
    found = set()
    for number in range(2, 9):
        for row in rows(f'paper/table{number}.csv'):
            if row['config'] != config:
                continue
            for metric, columns in COLUMNS.items():
                for column in (
                    (columns,) if isinstance(columns, str) else columns
                ):
                    if row.get(column):
                        found.add((metric, float(row[column])))
    return found


@every_model
def test_results_are_what_the_paper_prints(name):
    model = MODELS[name]
    results = [
        (metric, value)
        for result in model.get('Results', ())
        for metric, value in result['Metrics'].items()
    ]
    assert len(results) == len(set(results))
    assert set(results) == printed_results(model['Config'])
    data = {result['Dataset'] for result in model.get('Results', ())}
    assert data <= {model['Metadata']['Training Data']}


@every_model
def test_weights_name_their_page_and_only_a_file_that_was_seen(name):
    model = MODELS[name]
    released = RELEASED.get(model['Config'])
    # mmengine's inferencers read the key of each model.
    weights = model['Weights']
    if released is None:
        assert weights is None
        assert not {'SHA256', 'Converted From'} & set(model)
        return
    origin = model['Converted From']
    assert (ROOT / origin['Converter']).is_file()
    size = re.match('evmamba-([a-z]+)_', name)[1]
    assert origin['Page'] == released['page'] == PAGES + size.title()
    # mim would save a page as if it were the checkpoint.
    release = hub.RELEASED[size]
    assert weights == (released['url'] or f'evmamba://{size}')
    assert (release.page, release.file, release.sha256 or '') == (
        released['page'],
        released['file'],
        released['sha256'],
    )
    assert (model.get('SHA256') or '') == released['sha256']
    assert re.fullmatch(r'([0-9a-f]{64})?', released['sha256'])


def test_every_released_size_has_its_weights():
    assert {Path(config).name.split('_')[0] for config in RELEASED} == {
        f'evmamba-{size}' for size in ('tiny', 'small', 'base')
    }


def test_mim_search_filters_by_counts(mim, tmp_path):  # noqa: F811
    output = mim(
        tmp_path,
        'search',
        'evmamba_mm',
        '--condition',
        'parameters<7000000 flops<900000000',
        '--field',
        'flops',
        'parameters',
    )
    assert 'evmamba-tiny_16xb128-amp-300e_in1k' in output
    assert '806436096' in output
    assert 'evmamba-small' not in output


def test_mim_download_stops_as_documented(mim, tmp_path):  # noqa: F811
    said = 'No connection adapters'
    assert said in (ROOT / 'docs' / 'paper_and_release.md').read_text()
    with pytest.raises(AssertionError, match=said):
        mim(
            tmp_path,
            'download',
            'evmamba_mm',
            '--config',
            'evmamba-tiny_16xb128-amp-300e_in1k',
            '--dest',
            '.',
        )
    assert list(tmp_path.iterdir()) == []
