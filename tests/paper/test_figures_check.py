"""The figures of the pages show the data of today, and --check knows it."""

import shutil

import pytest

from ..tools.test_train_test import TOOLS, load_tool

pytest.importorskip('matplotlib', reason='matplotlib is not installed')

ROOT = TOOLS.parent
IMAGES = ROOT / 'docs' / 'images'
RESULTS = TOOLS / 'paper' / 'results'
CURVES = {
    'naive scan, plain torch': 'naive',
    'kernels': 'kernels',
    'kernels in CUDA graphs': 'graphs',
    'kernels, another seed': 'other_seed',
}
FIGURES = {
    'accuracy': ['accuracy'],
    'scan_order': ['scan-order'],
    'orderings': ['orderings'],
    'tradeoff': ['tradeoff'],
    'fields': ['fields'],
    'throughput': [
        *('throughput', RESULTS / 'benchmark' / 'h200_peers.csv'),
        *('--mode', 'best', '--batch', 128, '--size', 224),
        *('--accuracy', RESULTS / 'benchmark' / 'top1.csv'),
    ],
    'curves_kernels': [
        *('curves', '--smooth', 5),
        *(
            f'{label}={RESULTS / "curves" / f"tin50_{name}.json"}'
            for label, name in CURVES.items()
        ),
    ],
}


@pytest.fixture
def check(monkeypatch):
    main = load_tool('paper/figures', monkeypatch).main

    def run(image, *arguments):
        return main([*map(str, arguments), '--check', '-o', str(image)])

    return run


@pytest.mark.parametrize('name', FIGURES)
def test_figure_of_a_page_is_current(name, check):
    assert check(IMAGES / f'{name}.png', *FIGURES[name]) == 0


def test_figure_of_other_data_is_told(check, tmp_path, capsys):
    shutil.copytree(RESULTS / 'evidence', tmp_path / 'evidence')
    rows = tmp_path / 'evidence' / 'tin50.csv'
    rows.write_text(rows.read_text().replace('40.64', '41.64'))
    image = IMAGES / 'orderings.png'
    before = image.read_bytes()
    scores = ('--scores', tmp_path / 'evidence')
    assert check(image, 'orderings', *scores) == 1
    assert 'orderings.png shows other data' in capsys.readouterr().err
    assert image.read_bytes() == before


def test_picture_that_says_nothing(check, capsys):
    image = IMAGES / 'demo.jpg'
    assert check(image, 'accuracy') == 2
    assert 'does not say what it shows' in capsys.readouterr().err
