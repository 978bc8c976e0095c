"""Tables and figures of trainings with seeds, from files made up here."""

import importlib
import json
import shutil

import pytest

from evmamba_mm.benchmark.rows import COLUMNS
from evmamba_mm.csv_files import write_rows

from ..tools.test_train_test import TOOLS

PAPER = TOOLS / 'paper'
MASKS = ('nuclei, mask AP', 'AP50')
BOX, MASK = 'coco/bbox_mAP', 'coco/segm_mAP'


@pytest.fixture
def room(monkeypatch):
    """Gives a module of the paper's workshop."""
    monkeypatch.syspath_prepend(PAPER)
    return importlib.import_module


@pytest.fixture
def folder(room, monkeypatch, tmp_path):
    """A folder of scores with the names of the rows alone."""
    evidence = room('writing.evidence')
    for name in ('rows.csv', 'claims.csv'):
        shutil.copy(evidence.FOLDER / name, tmp_path)
    monkeypatch.setattr(evidence, 'FOLDER', tmp_path)
    return tmp_path


@pytest.fixture
def write(room, folder):
    """Writes {(row, metric): [a score a seed]} as the scores of a task."""
    columns = room('evidence.scores').COLUMNS

    def written(task, values):
        blank = dict.fromkeys(columns, '')
        rows = [
            blank | dict(row=row, metric=metric, seed=seed, value=value)
            for (row, metric), scores in values.items()
            for seed, value in enumerate(scores)
        ]
        cells = ([row[name] for name in columns] for row in rows)
        write_rows(folder / f'{task}.csv', columns, cells)

    return written


def lines_of(table):
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in table.splitlines()
        if '---' not in line
    ]


def test_what_was_not_trained_says_so(room, folder):
    tables = room('writing.evidence').TABLES
    for name in ('transfer', 'overfit', 'precision'):
        assert tables[name](folder) == 'Not trained yet.'


def test_rows_show_the_speed_that_was_measured(room, folder, write):
    top1 = 'accuracy/top1'
    write('tin50', {('tiny', top1): [58.0], ('vim-tiny', top1): [40.0]})
    same = dict.fromkeys(COLUMNS, 'x') | dict(phase='inference', size='128')
    measured = [
        same | dict(model='a/tiny.py', mode=mode, images_per_s=speed, ms='1')
        for mode, speed in (('graph', '104200'), ('compiled', '9e4'))
    ]
    cells = ([row[name] for name in COLUMNS] for row in measured)
    write_rows(folder / 'speed.csv', COLUMNS, cells)
    heads, tiny, vim = lines_of(room('writing.evidence').rows(None))
    place = heads.index('images/s')
    assert (tiny[place], vim[place]) == ('104,200', '')


def test_transfer_shows_the_tasks_and_seeds_that_there_are(room, write):
    nuclei = {
        ('tiny', BOX): [0.5, 0.52, 0.54],
        ('tiny', f'{BOX}_50'): [0.8, 0.81, 0.82],
        ('tiny', MASK): [0.6, 0.6, 0.63],
        ('resnet18', BOX): [0.51],
        ('resnet18', MASK): [0.529],
    }
    write('nuclei', nuclei)
    make = room('writing.evidence').transfer
    assert lines_of(make(None)) == [
        [*('backbone', 'nuclei, box AP', 'AP50'), *MASKS, 'seeds'],
        [
            *('EfficientVMamba-T', '52.0 ± 2.0', '81.0 ± 1.0'),
            '61.0 ± 1.7',
            '',
            '3',
        ],
        ['ResNet-18', '51.0', '', '52.9', '', '1'],
    ]
    write('camvid', {('tiny', 'mIoU'): [57.84]})
    _, tiny, resnet = lines_of(make(None))
    assert tiny[4:] == ['', '57.8', '', '', '1 to 3']
    assert resnet[4:] == ['', '', '', '', '1']


def test_gains_are_paired_by_seeds(room, write):
    write('bccd', {('tiny', BOX): [0.6, 0.61], ('resnet18', BOX): [0.59]})
    write('camvid', {('tiny', 'mIoU'): [57.0], ('pvtv2-b0', 'mIoU'): [58.5]})
    lines = lines_of(room('writing.evidence').gains(None))
    assert lines[1:] == [
        ['ResNet-18', '+1.0 (1)', '', ''],
        ['PVTv2-B0', '', '', '-1.5 (1)'],
        ['EfficientVMamba-T, random weights', '', '', ''],
    ]


def test_overfit_shows_what_each_detector_has(room, write):
    scores = {
        ('retinanet', f'{BOX}_50'): [0.987],
        ('mask-rcnn', f'{BOX}_50'): [0.991, 0.995],
        ('mask-rcnn', f'{MASK}_50'): [0.98, 0.97],
    }
    write('overfit', scores)
    assert lines_of(room('writing.evidence').overfit(None)) == [
        ['', 'box AP50', 'mask AP50', 'seeds'],
        ['RetinaNet', '98.7', '', '1'],
        ['Mask R-CNN', '99.3 ± 0.3', '97.5 ± 0.7', '2'],
    ]


def test_precision_is_compared_by_seeds(room, folder, write):
    top1 = 'accuracy/top1'
    write('tin50', {('tiny', top1): [58.0, 59.0, 60.0, 61.0]})
    others = {
        ('fp32', top1): [58.5, 59.0, 61.0],
        ('two-gpus', top1): [58.0],
        ('two-gpus', 'loss scale'): [8192.0],
    }
    write('precision', others)
    runs = [
        ('tin50_tiny', 4),
        ('precision_fp32', 3),
        ('precision_two-gpus', 1),
    ]
    for name, seeds in runs:
        for seed in range(seeds):
            path = folder / 'curves' / f'{name}_{seed}.json'
            path.parent.mkdir(exist_ok=True)
            log = [dict(loss=3.0), dict(loss=1.5 + seed), {top1: 1.0}]
            path.write_text('\n'.join(map(json.dumps, log)))
    heads, tiny, two, fp32 = lines_of(room('writing.evidence').precision(None))
    assert heads[3] == 'difference to the first row'
    assert tiny[1:] == ['59.5 ± 1.3', '4', '', '3.000 ± 1.291', '']
    # The mean of 0.5, 0, 1, and 4.303 standard errors of 0.5 / sqrt(3).
    assert fp32[1:4] == ['59.5 ± 1.3', '3', '+0.5 ± 1.2']
    assert two[1:] == ['58.0', '1', '+0.0', '1.500', '2^13']


def test_names_are_those_of_the_configs(room):
    evidence = room('writing.evidence')
    configs = TOOLS.parent / 'configs' / 'evidence'
    for task, names in (
        ('precision', set(evidence.WAYS) - {evidence.BASE}),
        ('overfit', set(evidence.DETECTORS)),
        ('nuclei', set(evidence.STARTS)),
    ):
        assert {path.stem for path in (configs / task).glob('*.py')} == names


def damage_columns(folder):
    (folder / 'rows.csv').write_text('row,name\ntiny,T\n')


def damage_number(folder):
    path = folder / 'tin50.csv'
    path.write_text(path.read_text().replace('58.56', 'fifty'))


def damage_claim(folder):
    path = folder / 'claims.csv'
    path.write_text(path.read_text() + 'x,tiny,resnet18,Table 0\n')


def damage_gradients(folder):
    path = folder / 'fields.npz'
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ('damage', 'names', 'message'),
    [
        (damage_columns, ('orderings', 'tradeoff', 'fields'), 'the columns'),
        (damage_number, ('orderings', 'tradeoff'), 'must be a number'),
        (damage_gradients, ('fields',), 'does not hold what fields.csv names'),
    ],
)
def test_a_damaged_file_makes_no_figure(
    damage, names, message, room, tmp_path, capsys
):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    figures = room('figures')
    stored = tmp_path / 'scores'
    shutil.copytree(room('writing.evidence').FOLDER, stored)
    damage(stored)
    for name in names:
        arguments = [name, '--scores', stored, '-o', tmp_path / 'figure.png']
        assert figures.main(list(map(str, arguments))) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('error: ')
        assert message in line
    assert not (tmp_path / 'figure.png').exists()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [(damage_number, 'must be a number'), (damage_claim, 'has no score of')],
)
def test_a_damaged_file_fills_no_page(
    damage, message, room, tmp_path, monkeypatch, capsys
):
    evidence = room('writing.evidence')
    shutil.copytree(evidence.FOLDER, tmp_path / 'scores')
    damage(tmp_path / 'scores')
    monkeypatch.setattr(evidence, 'FOLDER', tmp_path / 'scores')
    page = tmp_path / 'page.md'
    page.write_text(
        '<!-- table:evidence-claims -->\n<!-- /table:evidence-claims -->\n'
    )
    tables = room('tables')
    assert tables.main(['--check', '--no-count', str(page)]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    assert message in line


def test_speeds_are_measured_in_one_way(room, tmp_path):
    files = room('evidence.files')
    same = dict.fromkeys(COLUMNS, 'x')
    same |= dict(phase='inference', size='128', device='a CPU', ms='1')
    measured = [
        same | dict(model=f'config:a/{row}.py', images_per_s=speed)
        for row, speed in (('tiny', '5'), ('tiny', '7.5'), ('ss2d', '2'))
    ]

    def write(rows):
        cells = ([row[name] for name in COLUMNS] for row in rows)
        write_rows(tmp_path / 'speed.csv', COLUMNS, cells)

    write(measured)
    assert files.speeds(tmp_path) == (dict(tiny=7.5, ss2d=2.0), 'a CPU')
    for key, value in (('device', 'a GPU'), ('size', '224'), ('batch', '1')):
        write([*measured, measured[0] | {key: value}])
        with pytest.raises(ValueError, match=f'must have one {key}'):
            files.speeds(tmp_path)
    write([row | dict(phase='training') for row in measured])
    with pytest.raises(ValueError, match='inference.*, got training'):
        files.speeds(tmp_path)
    write([])
    with pytest.raises(ValueError, match='has no rows'):
        files.speeds(tmp_path)


def test_one_field_is_a_figure(room, tmp_path):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    stored = tmp_path / 'scores'
    shutil.copytree(room('writing.evidence').FOLDER, stored)
    path = stored / 'fields.csv'
    path.write_text('\n'.join(path.read_text().splitlines()[:2]) + '\n')
    room('drawing.fields').draw(tmp_path / 'figure.png', stored)
    assert (tmp_path / 'figure.png').is_file()
