import ast
import re
import sys
from pathlib import Path

import mmcv.ops
import pytest
import torch

from evmamba_mm.compat import mmcv_ext

from .processes import run_python

ROOT = Path(__file__).parent.parent.parent
MENDED = 'from evmamba_mm import compat\ncompat.apply()\n'
COMPILED = "COMPILED = 'yes'\n"


@pytest.fixture(scope='module')
def extension():
    module = sys.modules['mmcv._ext']
    if module.__spec__.origin is not None:
        pytest.skip('mmcv is compiled here: nothing is served')
    return module


def test_toolbox_breaks_without_the_mend(libraries_python):
    outcome = run_python('-c', 'import mmcv.ops', warm=libraries_python)
    outcome.assert_fault("No module named 'mmcv._ext'")


def test_every_op_file_imports_and_the_log_says_so_once(libraries_python):
    source = MENDED + 'import mmcv.ops, mmcv.ops.nms\nprint("imported")'
    lines = run_python('-c', source, warm=libraries_python).lines()
    assert lines[-1] == 'imported'
    assert sum('mmcv._ext' in line for line in lines) == 1


def test_compiled_extension_wins(tmp_path, libraries_python):
    (tmp_path / '_ext.py').write_text(COMPILED)
    source = (
        MENDED + 'import mmcv\n'
        f'mmcv.__path__.append({str(tmp_path)!r})\n'
        'import mmcv._ext\n'
        'print(mmcv._ext.COMPILED)'
    )
    outcome = run_python('-c', source, warm=libraries_python)
    assert outcome.lines()[-1] == 'yes'


def test_mmengine_sees_the_ops_and_reverts_sync_bn(extension):
    from mmengine.model import revert_sync_batchnorm

    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(3))
    reverted = revert_sync_batchnorm(model)
    assert reverted(torch.ones(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_environment_report_names_the_servant(extension):
    from mmcv.utils import collect_env

    report = collect_env()
    assert 'torchvision' in report['MMCV Compiler']
    assert report['MMCV CUDA Compiler'] == 'not available'


def ball_query():
    points = torch.rand(1, 3, 3)
    mmcv.ops.ball_query(0, 1, 2, points, points)


def carafe():
    mmcv.ops.carafe(torch.rand(1, 4, 3, 3), torch.rand(1, 9, 6, 6), 3, 1, 2)


def rotated_nms():
    boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0, 0.1]])
    mmcv.ops.nms_rotated(boxes, torch.ones(1), 0.5)


@pytest.mark.parametrize(
    'call, op',
    [
        (ball_query, 'ball_query_forward'),
        (carafe, 'carafe_forward'),
        (rotated_nms, 'nms_rotated'),
    ],
    ids=['ball_query', 'carafe', 'nms_rotated'],
)
def test_unserved_op_says_what_to_install_when_called(extension, call, op):
    with pytest.raises(NotImplementedError) as caught:
        call()
    assert f'mmcv op {op} needs' in str(caught.value)
    assert "mim install 'mmcv>=2.0.0rc4,<2.2.0'" in str(caught.value)


def asked_for():
    """The names of ops that mmcv's files ask the extension for."""
    names = set()
    for file in (Path(mmcv.__path__[0]) / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if getattr(getattr(node, 'func', None), 'attr', '') == 'load_ext':
                names |= {name.value for name in node.args[1].elts}
    return names


def test_what_is_not_served_is_listed_completely():
    left = asked_for() - set(mmcv_ext.SERVED)
    ends = r'_(forward|backward)(_data|_param|_mean|_output|_var)?$'
    page = (ROOT / 'docs' / 'install.md').read_text()
    listed = page.partition('These are not provided:')[2].partition('\n\n')[0]
    listed = re.findall(r'`(\w+)`', listed)
    assert sorted({re.sub(ends, '', name) for name in left}) == listed


def test_module_attributes_are_not_taken_for_ops(extension):
    assert callable(extension.no_such_op)
    assert not hasattr(extension, '__path__')
