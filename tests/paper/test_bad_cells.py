"""A cell that is empty, misspelt or no number is told of, never used."""

import csv
import importlib

import pytest

from evmamba_mm.benchmark import rows

from ..tools.test_train_test import TOOLS

for host in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(host, reason=f'{host} is not installed')


@pytest.fixture
def room(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS / 'paper')
    return importlib.import_module


def changed(source, target, column, value):
    """A copy of a CSV with one cell of its first row with a config changed."""
    with source.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames
    next(row for row in rows if row.get('config', True))[column] = value
    with target.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, names, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize('value', ['', 'nan', '5,6'])
def test_a_number_of_the_paper(value, room, tmp_path, monkeypatch):
    paper = room('writing.paper')
    source = paper.PAPER / 'table2.csv'
    changed(source, tmp_path / 'table2.csv', 'params_m', value)
    monkeypatch.setattr(paper, 'PAPER', tmp_path)
    with pytest.raises(ValueError, match=r'table2\.csv row \d+ must have'):
        paper.read_table('table2')


def test_a_row_of_the_paper_that_is_cut_off(room, tmp_path, monkeypatch):
    paper = room('writing.paper')
    lines = (paper.PAPER / 'table2.csv').read_text().splitlines()
    lines[-1] = lines[-1].split(',')[0]
    (tmp_path / 'table2.csv').write_text('\n'.join(lines))
    monkeypatch.setattr(paper, 'PAPER', tmp_path)
    with pytest.raises(ValueError, match='has not a cell a column'):
        paper.read_table('table2')


def test_a_released_model_of_no_config(room, tmp_path, monkeypatch):
    zoo = room('writing.zoo')
    copy = zoo.RESULTS / 'released_weights.csv'
    target = tmp_path / 'released_weights.csv'
    changed(copy, target, 'config', 'configs/mmpretrain/misspelt.py')
    monkeypatch.setattr(
        zoo, 'read_csv', lambda path, read=zoo.read_csv: read(target)
    )
    with pytest.raises(ValueError, match='misspelt'):
        zoo.metafile('mmpretrain', {})


@pytest.mark.parametrize('value', ['', 'nan', '0'])
def test_a_measured_speed(value, tmp_path):
    source = TOOLS / 'paper' / 'results' / 'benchmark' / 'h200.csv'
    changed(source, tmp_path / 'some.csv', 'ms', value)
    with pytest.raises(ValueError, match='line 2, ms'):
        rows.read(tmp_path / 'some.csv')


def test_rows_of_two_devices_in_one_table():
    folder = TOOLS / 'paper' / 'results' / 'benchmark'
    both = [*rows.read(folder / 'h200.csv'), *rows.read(folder / 'cpu.csv')]
    with pytest.raises(ValueError, match='one device'):
        rows.markdown(both, 'ms')


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -1.0])
def test_a_score_of_the_host(value, room):
    metrics = room('reproducing.metrics')
    (ap,) = metrics.choose(3, ['ap'])
    with pytest.raises(ValueError, match='finite number of at least 0'):
        metrics.to_percent(ap, value)
