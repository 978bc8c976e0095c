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


def test_smoothing_is_a_centred_mean(main):
    from drawing import curves

    assert curves.smoothed([1.0, 2.0, 6.0, 4.0], 3) == [1.0, 3.0, 4.0, 4.0]
    falling = [10.0 - step for step in range(9)]
    assert curves.smoothed(falling, 5) == falling
    assert curves.smoothed([1.0, 5.0, 2.0], 1) == [1.0, 5.0, 2.0]


@pytest.mark.parametrize('window, lines', [('1', 2), ('3', 4)])
def test_without_a_mean_the_values_are_drawn_alone(
    window, lines, run, main, tmp_path, monkeypatch
):
    from drawing import style

    drawn = []
    monkeypatch.setattr(
        style, 'write', lambda figure, path: drawn.append(figure)
    )
    runs = [f'a={run}', f'b={run}', f'--smooth={window}']
    assert main(['curves', *runs, '-o', str(tmp_path / 'a.png')]) == 0
    assert len(drawn[0].axes[0].get_lines()) == lines


def test_a_mean_of_an_even_number_is_refused(main, capsys):
    with pytest.raises(SystemExit):
        main(['curves', 'a=b', '--smooth=4', '-o', 'a.png'])
    assert "'4' must be odd" in capsys.readouterr().err


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
