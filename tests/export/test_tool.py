"""tools/deployment: the export of a config, and the table of latencies."""

import re

import pytest
import torch
from mmengine.config import Config

from evmamba_mm.apis import build_predictor

from ..tools.test_train_test import TOOLS, load_tool

ROOT = TOOLS.parent
CONFIG = ROOT / 'configs/demo/evmamba-atto_1xb16-15e_cells.py'


@pytest.fixture
def main(monkeypatch):
    return load_tool('deployment/export', monkeypatch).main


def test_config_becomes_a_program(main, tmp_path, capsys):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    model = build_predictor(Config.fromfile(CONFIG), 'cpu').model
    weights, out = tmp_path / 'weights.pth', tmp_path / 'model.pt2'
    torch.save({'state_dict': model.state_dict()}, weights)
    arguments = [str(CONFIG), str(weights), str(out), '--dynamic', 'batch']
    assert main(arguments) == 0
    assert 'model.pt2: written' in capsys.readouterr().out
    program = torch.export.load(out).module()
    image = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        expected = model(image, mode='tensor')
        found = program(image)['scores']
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['a.py', 'b.pth', 'c.bin'], 'OUT must end in .onnx, .xml, .pt2'),
        (['a.py', 'b.pth', 'c.xml', '--dynamic', 'batch'], 'a fixed size'),
        (['a.py', 'b.pth', 'c', '--format', 'openvino'], 'end in .xml'),
        (['a.py', 'b.pth', 'c.xml', '--shape', '0', '64'], "'0' is not a"),
        (['a.py', 'b.pth', 'c.xml', '--opset', '21'], 'only ONNX files'),
    ],
)
def test_wrong_arguments_are_refused(main, arguments, said, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def test_missing_config_is_an_error(main, capsys, tmp_path):
    assert main(['none.py', 'b.pth', str(tmp_path / 'c.onnx')]) == 1
    assert 'none.py' in capsys.readouterr().err


def test_a_path_that_cannot_be_written_is_refused_first(
    main, capsys, tmp_path
):
    assert main(['none.py', 'b.pth', str(tmp_path), '--format', 'torch']) == 1
    assert 'cannot be written: it is a folder' in capsys.readouterr().err


@pytest.mark.parametrize(
    'tool, file, mark',
    [
        ('deployment/benchmark', 'latency.csv', 'latency'),
        ('deployment/check', 'errors.csv', 'errors'),
        ('deployment/check', 'errors_hosts.csv', 'errors-hosts'),
    ],
)
def test_page_shows_what_was_measured(monkeypatch, capsys, tool, file, mark):
    tool = load_tool(tool, monkeypatch)
    assert tool.main(['table', str(ROOT / 'tools/deployment' / file)]) == 0
    made = capsys.readouterr().out
    page = (ROOT / 'docs/export.md').read_text()
    block = re.compile(rf'<!-- {mark} -->\n(.*?)<!-- /{mark} -->', re.DOTALL)
    (shown,) = block.findall(page)
    assert shown.split() == made.split()


@pytest.mark.parametrize('tool', ['benchmark', 'check'])
def test_table_of_another_file_is_a_line(monkeypatch, capsys, tool):
    tool = load_tool(f'deployment/{tool}', monkeypatch)
    assert tool.main(['table', str(ROOT / 'README.md')]) == 1
    assert 'must have the columns' in capsys.readouterr().err


@pytest.mark.parametrize(
    'tool, option', [('check', '--archs'), ('benchmark', '--models')]
)
def test_model_that_there_is_not(monkeypatch, capsys, tool, option, tmp_path):
    tool = load_tool(f'deployment/{tool}', monkeypatch)
    out = tmp_path / 'rows.csv'
    name = 'EfficientVMamba:huge' if option == '--models' else 'huge'
    assert tool.main(['measure', str(out), option, name]) == 1
    assert 'must be one of atto, tiny' in capsys.readouterr().err
    assert not out.exists()
