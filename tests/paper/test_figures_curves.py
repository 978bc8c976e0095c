import json

import pytest

from ..tools.test_train_test import load_tool

pytest.importorskip('matplotlib', reason='matplotlib is not installed')


@pytest.fixture
def main(monkeypatch):
    return load_tool('paper/figures', monkeypatch).main


@pytest.fixture
def run(tmp_path):
    """A work dir as mmengine leaves it: training lines, and one of a test."""
    folder = tmp_path / 'run' / '20260101' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [dict(loss=4.0 / step, step=step) for step in range(1, 9)]
    lines.append({'coco/bbox_mAP': 0.5, 'step': 8})
    text = '\n'.join(json.dumps(line) for line in lines)
    (folder / 'scalars.json').write_text(text)
    return tmp_path / 'run'


def test_runs_are_drawn_with_their_names(run, main, tmp_path):
    file = tmp_path / 'curves.svg'
    runs = [f'fused={run}', f'naive={run / "20260101/vis_data/scalars.json"}']
    assert main(['curves', *runs, '--smooth', '3', '-o', str(file)]) == 0
    assert file.is_file()


def test_smoothing_is_a_mean_of_the_last_values(main):
    from drawing import curves

    assert curves.smoothed([1.0, 2.0, 6.0, 4.0], 2) == [1.0, 1.5, 4.0, 5.0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['a=none'], "'none' must be a work dir"),
        (['a={}', '--key=lr'], "--key 'lr' is in no line"),
    ],
    ids=['run', 'key'],
)
def test_mistake_is_told_in_a_line(arguments, message, run, main, capsys):
    given = [text.format(run) for text in arguments]
    assert main(['curves', *given, '-o', 'a.png']) == 2
    assert message in capsys.readouterr().err
