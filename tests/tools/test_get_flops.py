"""get_flops.py, on a config and on an arch."""

import pytest

from .test_train_test import TOOLS, load_tool

CONFIG = TOOLS.parent / 'configs/demo/evmamba-atto_1xb16-15e_cells.py'


@pytest.fixture
def main(monkeypatch):
    return load_tool('analysis_tools/get_flops', monkeypatch).main


def test_a_config_and_its_backbone(main, capsys):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    assert main([str(CONFIG)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'input: 224x224'
    assert lines[-1].endswith(' G, a multiply-add as one')
    assert main(['atto', '--shape', '32', '64']) == 0
    assert 'input: 64x32' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['none.py'], "there is no config 'none.py'"),
        (['huge'], "got 'huge'"),
        (['tiny', '--shape', '1', '2', '3'], 'one or two numbers'),
        (['a.py', '--shape', '32'], 'is for an arch'),
    ],
)
def test_mistakes(arguments, said, main, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert said in capsys.readouterr().err
