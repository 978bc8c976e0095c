"""The benchmark of a pipeline: what it does, never how fast it is."""

import pytest

from evmamba_mm.benchmark import data, rows

from .tool import run


def test_data_have_a_time_for_each_step(toy, class_folders, tmp_path, capsys):
    file = tmp_path / 'rows.csv'
    arguments = ('--data', class_folders, '--repeats', 2, '--csv', file)
    assert run('data', toy, *arguments) == 0
    found = {x['phase']: float(x['ms']) for x in rows.read(file)}
    steps = ['LoadResizedCrop', 'PackInputs']
    assert list(found) == [data.WHOLE, *steps, data.BATCH]
    assert sum(found[step] for step in steps) == pytest.approx(
        found[data.WHOLE], rel=0.3
    )
    shown = capsys.readouterr().out
    assert 'images/s a core, of which' in shown
    assert '% LoadResizedCrop' in shown


def test_another_pipeline_of_the_config(toy, class_folders, capsys):
    arguments = ('--data', class_folders, '--repeats', 1, '--pipeline')
    assert run('data', toy, *arguments, 'image_pipeline') == 0
    assert '% RandAugment' in capsys.readouterr().out
    assert run('data', toy, *arguments, 'other') == 2
    assert 'it has config, train_pipeline' in capsys.readouterr().err


def test_steps_of_one_type_are_told_apart():
    pipeline = [dict(type='Resize'), dict(type='Pad'), dict(type='Resize')]
    assert data.step_names(pipeline) == ['Resize', 'Pad', 'Resize 2']


@pytest.mark.parametrize(
    'arguments', [('no.py',), ('TOY', '--data', 'nowhere')]
)
def test_data_that_are_not_there(arguments, toy, capsys):
    given = [toy if each == 'TOY' else each for each in arguments]
    assert run('data', *given) == 2
    assert 'error: ' in capsys.readouterr().err
