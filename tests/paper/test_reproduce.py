"""reproduce.py: what it refuses, what it runs, and what it writes."""

import hashlib
import importlib
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from ..test_checkpoint import released_like
from ..tools.test_train_test import TOOLS, load_tool

CATALOGUE_HEAD = 'config,page,file,url,sha256,top1_raw,top1_ema\n'
PAGE = 'https://example.org/tiny'
TINY = 'configs/mmpretrain/evmamba-tiny_16xb128-amp-300e_in1k.py'


@pytest.fixture
def room(monkeypatch):
    """Gives a module of the folder `reproducing`."""
    monkeypatch.syspath_prepend(TOOLS / 'paper')
    return lambda name: importlib.import_module(f'reproducing.{name}')


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The tool's main(), in an empty folder without variables."""
    for name in ('IMAGENET', 'COCO', 'ADE20K'):
        monkeypatch.delenv(f'EVMAMBA_{name}', raising=False)
    monkeypatch.chdir(tmp_path)
    return load_tool('paper/reproduce', monkeypatch).main


def fake_data(root, *paths):
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


def test_list_names_every_row_with_a_config_once(main, room, capsys):
    assert main(['--list']) == 0
    said = capsys.readouterr().out
    for number in room('metrics').METRICS:
        rows = room('rows').read_table(number)
        for row in (row for row in rows if row.config):
            name = room('rows').name_of(row, rows)
            assert room('rows').find_row(number, name) == row
            assert room('rows').find_row(number, str(row.number)) == row
            assert f'  {row.number:2}  {name}' in said


def test_every_column_of_results_is_in_its_table(room):
    for number, metrics in room('metrics').METRICS.items():
        for row in room('rows').read_table(number):
            for metric in metrics:
                assert 0 < Decimal(row.printed[metric.column]) < 100


@pytest.mark.parametrize(
    'arguments, parts',
    [
        (['--table=9', '--row=1'], ['--table 9', '2, 3, 4, 5, 6, 7, 8']),
        (['--table=1', '--row=1'], ['--table 1', 'tools/paper/tables.py']),
        (
            ['--table=3', '--row=EfficientVMamba-X'],
            ["'EfficientVMamba-X'", 'no such row', '9  EfficientVMamba-S'],
        ),
        (['--table=3', '--row=EfficientViT-M4'], ['there is no config']),
        (
            ['--table=7', '--row=EfficientVMamba-S'],
            [
                '2 rows of table 7',
                '5  mask-rcnn_evmamba-small_fpn_8xb2-amp-1x',
            ],
        ),
        (['--table=4', '--row=9', '--columns=ap'], ["'ap'", 'miou_ss']),
        (['--table=3', '--row=9', '--checkpoint=x.pth'], ["no file 'x.pth'"]),
    ],
    ids=['table', 'counts', 'row', 'peer', 'twice', 'column', 'checkpoint'],
)
def test_wrong_row_is_refused_with_what_is_legal(
    arguments, parts, main, capsys
):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--table=3'], '--table and --row are needed'),
        (['--table=3', '--row=9', '--gpus=0'], 'not a positive integer'),
        (
            ['--table=3', '--row=9', '--train', '--checkpoint=x'],
            'exclude each other',
        ),
    ],
    ids=['row', 'gpus', 'both'],
)
def test_unusable_arguments_are_refused(arguments, message, main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_data_are_named_with_their_source(main, capsys):
    arguments = ['--table=3', '--row=9', '--train', '--data-root=coco']
    assert main(arguments) == 2
    said = capsys.readouterr().err
    for part in (
        'coco/annotations/instances_train2017.json',
        'coco/val2017',
        'https://cocodataset.org',
        'EVMAMBA_COCO=FOLDER',
    ):
        assert part in said


def test_variable_leads_to_the_data(room, monkeypatch, tmp_path):
    data = room('data')
    assert data.root_of(data.ADE20K, None).match(data.ADE20K.default)
    monkeypatch.setenv('EVMAMBA_ADE20K', str(tmp_path))
    assert data.root_of(data.ADE20K, None) == tmp_path
    assert data.root_of(data.ADE20K, tmp_path / 'x') == tmp_path / 'x'
    # A test asks for less than a training.
    parts = data.ADE20K.parts
    fake_data(tmp_path, *parts['test'])
    data.check(data.ADE20K, tmp_path, 'test')
    with pytest.raises(ValueError, match='images/training'):
        data.check(data.ADE20K, tmp_path, 'train')


def test_root_that_a_config_cannot_be_given_is_refused(room, tmp_path):
    data = room('data')
    root = fake_data(tmp_path / 'a,b', *data.ADE20K.parts['test'])
    with pytest.raises(ValueError, match='link the folder'):
        data.check(data.ADE20K, root, 'test')


def test_images_are_counted(room, tmp_path):
    data = room('data')
    folder = fake_data(tmp_path, 'val/n1', 'val/n2')
    for name in ('n1/a.JPEG', 'n1/b.JPEG', 'n2/c.JPEG', 'n2/note.txt'):
        (folder / 'val' / name).touch()
    assert data.count_images(data.IMAGENET, folder) == 3
    (folder / 'ann.txt').write_text('a.jpg 0\nb.jpg 1\n')
    assert data.count_images(data.IMAGENET, folder) == 2
    (folder / 'annotations').mkdir()
    file = folder / data.COCO.parts['test'][0]
    file.write_text('{"images": [{}, {}, {}, {}]}')
    assert data.count_images(data.COCO, folder) == 4


@pytest.mark.parametrize(
    'measured, whole, options, expected',
    [
        ('39.10', True, [], 'within'),
        ('38.60', True, [], 'within'),
        ('38.59', True, [], 'below'),
        ('39.61', True, [], 'above'),
        ('39.10', True, ['a=1'], 'other settings'),
        ('39.10', False, ['a=1'], 'other data'),
    ],
)
def test_verdict(measured, whole, options, expected, room):
    verdict = room('metrics').verdict(
        Decimal(measured), Decimal('39.1'), Decimal('0.5'), whole, options
    )
    assert verdict == expected


def test_score_of_the_host_becomes_per_cent(room):
    metrics = room('metrics')
    (ap,) = metrics.choose(3, ['ap'])
    assert metrics.to_percent(ap, 0.391) == Decimal('39.10')
    (top1,) = metrics.choose(2, None)
    assert metrics.to_percent(top1, 76.4812) == Decimal('76.48')


def test_measured_cell_replaces_its_older_self(room, tmp_path):
    measured = room('measured')
    line = dict.fromkeys(measured.COLUMNS, 'x')
    line |= dict(row=9, images=80, metric='ap', weights='a.pth')
    file = tmp_path / 'new' / 'table3.csv'
    measured.write(file, [line | dict(measured=1), line | dict(row=5)])
    measured.write(file, [line | dict(measured=2), line | dict(images=5000)])
    found = [
        (r['row'], r['images'], r['measured']) for r in measured.read(file)
    ]
    assert found == [('5', '80', 'x'), ('9', '80', '2'), ('9', '5000', 'x')]


def test_several_gpus_go_through_the_launchers(main, capsys):
    fake_data(Path('coco'), 'val2017', 'train2017', 'annotations')
    for split in ('train', 'val'):
        file = Path('coco', 'annotations', f'instances_{split}2017.json')
        file.write_text('{"images": []}')
    arguments = ['--table=3', '--row=5', '--dry-run', '--data-root=coco']
    arguments += ['--train', '--cfg-options', 'model.backbone.init_cfg=None']
    assert main([*arguments, '--gpus=4']) == 0
    four = capsys.readouterr().out
    assert 'tools/dist_train.sh ' in four
    assert '-1x_coco.py TRAINED 4 ' in four
    # 4 x 2 images are not the 16 that the learning rate is meant for.
    assert '--resume --auto-scale-lr' in four
    assert main([*arguments, '--gpus=8']) == 0
    assert '--auto-scale-lr' not in capsys.readouterr().out
    assert main([*arguments, '--gpus=1']) == 0
    assert 'tools/train.py ' in capsys.readouterr().out


def test_dry_run_says_what_is_missing_and_writes_nothing(main, capsys):
    assert main(['--table=2', '--row=EfficientVMamba-B', '--dry-run']) == 1
    said = capsys.readouterr().out
    assert 'ImageNet-1k is not complete' in said
    # 81.8 is what the averaged weights reach.
    assert 'evmamba-base-ema_in1k.pth is not there' in said
    assert 'https://huggingface.co/TerryPei/EfficientVMamba-Base' in said
    assert 'top1: accuracy/top1, paper 81.8 ± 0.1' in said
    assert list(Path().iterdir()) == []


def test_row_without_weights_says_how_to_get_them(main, capsys):
    fake_data(Path('ade'), 'images/validation', 'annotations/validation')
    assert main(['--table=4', '--row=9', '--data-root=ade']) == 2
    said = capsys.readouterr().err
    assert 'train it first with --train, or give --checkpoint' in said


@pytest.fixture
def release(tmp_path, room, monkeypatch):
    """A release of the tiny variant in a folder, and its catalogue."""
    from evmamba_mm import EfficientVMamba

    file = tmp_path / 'far' / 'tiny.ckpt'
    file.parent.mkdir()
    weights = released_like(EfficientVMamba('tiny'))
    weights['classifier.head.weight'] = torch.zeros(1000, 384)
    weights['classifier.head.bias'] = torch.zeros(1000)
    torch.save(dict(state_dict=weights), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def catalogue(sha256=digest, url=None):
        url = file.as_uri() if url is None else url
        listed = tmp_path / 'catalogue.csv'
        cells = f'{TINY},{PAGE},tiny.ckpt,{url},{sha256},76.48,76.41\n'
        listed.write_text(CATALOGUE_HEAD + cells)
        monkeypatch.setattr(room('released'), 'CATALOGUE', listed)
        return room('released').entry_of_config(TINY)

    monkeypatch.chdir(tmp_path)
    return catalogue


def test_released_weights_are_fetched_and_translated(release, room):
    released, entry = room('released'), release()
    target = released.translated_path(entry, ema=False)
    assert released.entry_of_checkpoint(target) == entry
    assert not released.wants_average(entry, Decimal('76.5'))
    released.obtain(entry, target, ema=False)
    stored = torch.load(target, weights_only=True)
    assert stored['meta']['arch'] == 'tiny'
    assert 'head.fc.weight' in stored['state_dict']
    released.check_origin(entry, target, ema=False)
    with pytest.raises(ValueError, match='give it by --checkpoint'):
        released.check_origin(entry, target, ema=True)
    # What is there is not fetched again.
    shutil.rmtree('far')
    target.unlink()
    released.obtain(entry, target, ema=False)
    assert target.is_file()


def test_other_file_than_the_catalogue_says_is_refused(release, room):
    entry = release(sha256='0' * 64)
    with pytest.raises(ValueError, match='delete it and fetch it again'):
        room('released').obtain(entry, Path('a.pth'), ema=False)
    assert not Path('a.pth').exists()


def test_weights_that_cannot_be_fetched_may_be_put_there(release, room):
    entry = release(url=Path('nowhere.ckpt').absolute().as_uri())
    with pytest.raises(ValueError, match='put it at checkpoints/tiny.ckpt'):
        room('released').obtain(entry, Path('a.pth'), ema=False)
    assert list(Path('checkpoints').iterdir()) == []


def test_weights_of_unknown_address_are_downloaded_by_hand(release, room):
    released, entry = room('released'), release(sha256='', url='')
    with pytest.raises(ValueError) as error:
        released.obtain(entry, Path('a.pth'), ema=False)
    said = f'{PAGE} and put the file at checkpoints/tiny.ckpt'
    assert said in str(error.value)
    assert not Path('checkpoints').exists()
    Path('checkpoints').mkdir()
    shutil.copy('far/tiny.ckpt', 'checkpoints')
    released.obtain(entry, Path('a.pth'), ema=False)
    assert Path('a.pth').is_file()
