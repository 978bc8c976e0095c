"""The figure of throughput and top-1."""

import importlib

import pytest

from evmamba_mm.benchmark import rows

from ..tools.test_train_test import load_tool
from . import PAPER

ATTO = 'EfficientVMamba:atto'


@pytest.fixture
def main(monkeypatch):
    return load_tool('paper/figures', monkeypatch).main


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(PAPER)
    return importlib.import_module('drawing.throughput')


def row(model='a:b', mode='eager', phase='inference', ms=4.0, **changes):
    values = dict(
        batch=2,
        size='32',
        dtype='fp32',
        images_per_s=2000 / ms,
        peak_gib=None,
        device='CPU',
        torch='2',
        command='c',
    )
    return rows.Row(
        model=model, mode=mode, phase=phase, ms=ms, **values | changes
    )


def accuracies(path, *lines):
    path.write_text('\n'.join(['model,name,top1,source', *lines]) + '\n')
    return path


def test_plot_draws_and_says_what_it_leaves_out(main, tmp_path, capsys):
    pytest.importorskip('matplotlib', reason='matplotlib is not installed')
    measured, figure = tmp_path / 'a.csv', tmp_path / 'a.png'
    for name, ms in ((ATTO, 1.0), ('timm:x', 3.0), ('timm:y', 5.0)):
        rows.store(measured, row(name, ms=ms))
    known = accuracies(tmp_path / 'b.csv', f'{ATTO},Ours,70,', 'timm:x,X,71,')
    argv = ('throughput', measured, '--accuracy', known, '-o', figure)
    assert main([*map(str, argv)]) == 0
    assert figure.stat().st_size > 1000
    assert 'left out: timm:y' in capsys.readouterr().err
    assert main([*map(str, argv), '--mode', 'graph']) == 2
    assert "mode 'graph'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'message'),
    [({'batch': 9}, 'one batch'), ({'model': 'timm:z'}, 'no row')],
)
def test_points_of_one_setting(throughput, change, message):
    first = [] if 'model' in change else [row().texts()]
    measured = [*first, row(**change).texts()]
    accuracy = {'a:b': ('A', 70.0)}
    with pytest.raises(ValueError, match=message):
        throughput.points_of(measured, accuracy, 'eager', 'inference')


def test_a_model_that_is_there_twice_is_refused(throughput):
    with pytest.raises(ValueError, match='several rows'):
        throughput.points_of(
            [row().texts()] * 2, {'a:b': ('A', 70.0)}, 'eager', 'inference'
        )


def test_rows_are_chosen_by_batch_and_size(throughput):
    measured = [row(batch=batch).texts() for batch in (2, 9)]
    measured.append(row('c:d', 'graph', batch=9).texts())
    choose = throughput.chosen_rows
    assert choose(measured, 'eager', 'inference', 9, None) == measured[1:2]
    assert choose(measured, 'eager', 'inference', None, 7) == []


def test_the_fastest_mode_of_each_model(throughput):
    measured = [
        row(mode=mode, ms=ms).texts()
        for mode, ms in (('eager', 4.0), ('graph', 2.0))
    ]
    measured.append(row('c:d', 'compiled').texts())
    chosen = throughput.chosen_rows(measured, 'best', 'inference', 2, 32)
    assert chosen == measured[1:]


def test_accuracy_that_is_no_number_is_told(throughput, tmp_path):
    path = accuracies(tmp_path / 'b.csv', 'a:b,A,seventy,')
    with pytest.raises(ValueError, match="line 2.*'seventy'"):
        throughput.read_accuracies(path)
