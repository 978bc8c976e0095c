"""Each room of the package imports only what its place in the house allows.

ops -> layers -> fast -> backbones, never backwards; outside packages where
they are needed and nowhere else. Read from the syntax tree, so that an import
inside a function counts too.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = 'evmamba_mm'
MAX_FILE_LINES = 400
# A family's kernel, launch, autograd function and maths stand in one file.
MAX_KERNEL_FILE_LINES = 700
MAX_FUNCTION_LINES = 60
# Splitting a kernel would pass all that its registers hold.
MAX_KERNEL_FUNCTION_LINES = 70


@dataclass(frozen=True)
class Room:
    """What the files of one room may import besides the standard library.

    `within` names rooms of the package, `outside` other packages, and
    `single` a file of the room that may import a further package or room.
    """

    within: tuple[str, ...]
    outside: tuple[str, ...]
    single: tuple[tuple[str, str], ...] = ()
    modules_allowed: bool = True


ROOMS = {
    'ops': Room(
        within=('ops', 'ops/scan'),
        outside=('torch',),
        modules_allowed=False,
    ),
    'ops/scan': Room(
        within=('ops', 'ops/scan'),
        outside=('torch',),
        single=(
            ('cuda', 'ops/scan/cuda/compiler'),
            ('numba', 'ops/scan/numba_kernels'),
            ('numpy', 'ops/scan/numba_kernels'),
            ('mamba_ssm', 'ops/scan/mamba_scan'),
            ('selective_scan_cuda', 'ops/scan/mamba_scan'),
            ('ops/triton', 'ops/scan/cuda/projection'),
            ('ops/triton', 'ops/scan/cuda/host'),
        ),
        modules_allowed=False,
    ),
    'ops/triton': Room(
        within=('ops', 'ops/triton'),
        outside=('torch', 'triton'),
        modules_allowed=False,
    ),
    'layers': Room(within=('ops', 'ops/scan', 'layers'), outside=('torch',)),
    'fast': Room(
        within=('ops', 'ops/scan', 'ops/triton', 'layers', 'fast'),
        outside=('torch',),
    ),
    'backbones': Room(
        within=('layers', 'fast', 'backbones'), outside=('torch', 'mmengine')
    ),
    'compat': Room(
        within=('compat',),
        outside=('numpy', 'torch', 'torchvision', 'mmengine'),
    ),
    'datasets': Room(
        within=('datasets',),
        outside=('numpy', 'scipy', 'sklearn', 'PIL', 'cv2'),
    ),
    'graphs': Room(within=('graphs', 'ops'), outside=('torch',)),
    'hooks': Room(within=('graphs', 'hooks'), outside=('torch', 'mmengine')),
    'optim': Room(within=('optim',), outside=('torch', 'mmengine')),
    'deploy': Room(within=('layers', 'fast', 'backbones'), outside=('torch',)),
    'checkpoint': Room(within=(), outside=('torch',)),
    'canvases': Room(within=(), outside=('torch', 'mmengine')),
    'detection': Room(
        within=('detection', 'ops'), outside=('torch', 'mmengine', 'mmdet')
    ),
    'data_preprocessor': Room(
        within=(), outside=('torch', 'mmengine', 'mmpretrain')
    ),
    'analysis': Room(
        within=('analysis', 'apis', 'backbones', 'ops'),
        outside=('numpy', 'torch', 'mmengine'),
    ),
    # The hosts and what draws are imported when they are asked for.
    'apis': Room(
        within=('apis', 'backbones', 'checkpoint'),
        outside=(
            *('numpy', 'torch', 'mmengine', 'mmcv', 'cv2', 'PIL', 'rich'),
            *('mmdet', 'mmseg', 'mmpretrain', 'pycocotools'),
        ),
    ),
    'benchmark': Room(
        within=(
            *('benchmark', 'backbones', 'deploy', 'graphs'),
            *('ops', 'ops/scan'),
        ),
        outside=(
            *('torch', 'mmengine', 'mmcv', 'rich', 'timm'),
            *('mmdet', 'mmpretrain'),
        ),
    ),
    'cli': Room(
        within=('cli', 'backbones', 'compat'),
        outside=('torch', 'mmengine'),
    ),
    'log': Room(within=(), outside=('mmengine',)),
    'version': Room(within=(), outside=()),
    '__init__': Room(
        within=(
            'analysis',
            'backbones',
            'canvases',
            'compat',
            'data_preprocessor',
            'detection',
            'hooks',
            'log',
            'optim',
            'version',
        ),
        outside=(),
    ),
}


def sources():
    files = (ROOT / PACKAGE).rglob('*.py')
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def module_name(path):
    """'evmamba_mm/ops/__init__.py' -> 'evmamba_mm.ops'."""
    parts = Path(path).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def absolute(name, package):
    """('..b', ['evmamba_mm', 'a']) -> 'evmamba_mm.b'."""
    rest = name.lstrip('.')
    level = len(name) - len(rest)
    parent = package[: len(package) - level + 1] if level else []
    return '.'.join([*parent, *filter(None, [rest])])


def imported_modules(tree, path):
    """Yields (line, absolute module name) of each import of a file.

    `from a import b` yields both `a` and `a.b`, since b may be a module.
    """
    package = module_name(path).split('.')
    if Path(path).name != '__init__.py':
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = absolute('.' * node.level + (node.module or ''), package)
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f'{base}.{alias.name}'
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).split('.')[-1]
            first = node.args[0] if node.args else None
            if name in ('import_module', '__import__') and isinstance(
                first, ast.Constant
            ):
                yield node.lineno, absolute(first.value, package)


def room_of(path):
    """The innermost room: 'evmamba_mm/ops/scan/a.py' -> 'ops/scan'."""
    parts = Path(path).with_suffix('').parts[1:]
    inner = '/'.join(parts[:2])
    return inner if inner in ROOMS else parts[0]


def import_violations(tree, path):
    room = ROOMS[room_of(path)]
    here = Path(path).with_suffix('').relative_to(PACKAGE).as_posix()
    extra = {other for other, file in room.single if file == here}
    for line, module in imported_modules(tree, path):
        top = module.split('.')[0]
        if top in sys.stdlib_module_names or module == PACKAGE:
            continue
        if top == PACKAGE:
            other = room_of(module.replace('.', '/'))
            legal = other in room.within or other in extra
        else:
            legal = top in room.outside or top in extra
        if not legal:
            yield f'{path}:{line} imports {module}'


def module_violations(tree, path):
    """Finds parameters or modules in a room that owns none."""
    if ROOMS[room_of(path)].modules_allowed:
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        if {'Module', 'Parameter'} & set(names):
            yield f'{path}:{node.lineno} uses a module or a parameter'


def has_kernels(path):
    # The tests of a family mirror its file.
    return 'ops/triton' in Path(path).parent.as_posix()


def file_length_violations(source, path):
    lines, kernels = len(source.splitlines()), has_kernels(path)
    if lines >= (MAX_KERNEL_FILE_LINES if kernels else MAX_FILE_LINES):
        yield f'{path} has {lines} lines'


def length_violations(source, path):
    yield from file_length_violations(source, path)
    kernels = has_kernels(path)
    most = MAX_KERNEL_FUNCTION_LINES if kernels else MAX_FUNCTION_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length >= most:
                yield f'{path}:{node.lineno} {node.name} has {length} lines'


def idiom_violations(tree, path):
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments) and node.kwarg is not None:
            yield f'{path}:{node.kwarg.lineno} takes **{node.kwarg.arg}'
        if isinstance(node, ast.Attribute):
            if ast.unparse(node) in ('sys.path.insert', 'sys.path.append'):
                yield f'{path}:{node.lineno} changes sys.path'


def violations(source, path):
    """Lists every broken rule of a file of the package."""
    if room_of(path) not in ROOMS:
        return [f'{path} lies in no room']
    tree = ast.parse(source)
    return [
        *import_violations(tree, path),
        *module_violations(tree, path),
        *length_violations(source, path),
        *idiom_violations(tree, path),
    ]


@pytest.mark.parametrize('path', sources())
def test_file_keeps_the_rules_of_its_room(path):
    assert violations((ROOT / path).read_text(), path) == []


@pytest.mark.parametrize(
    'path',
    sorted(
        file.relative_to(ROOT).as_posix()
        for folder in ('tests', 'tools', '.')
        for file in (ROOT / folder).glob(
            '*.py' if folder == '.' else '**/*.py'
        )
    ),
)
def test_file_outside_the_package_is_short(path):
    assert [*length_violations((ROOT / path).read_text(), path)] == []


def scripts():
    files = (ROOT / 'tools').rglob('*.py')
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


@pytest.mark.parametrize('path', scripts())
def test_scripts_import_the_package_and_no_other_script(path):
    """Those of the paper's workshop may import what lies beside them."""
    tree = ast.parse((ROOT / path).read_text())
    assert [*idiom_violations(tree, path)] == []
    if path.startswith('tools/paper/'):
        return
    names = {Path(other).stem for other in scripts()}
    imported = {module for _, module in imported_modules(tree, path)}
    assert not {module.split('.')[0] for module in imported} & names


@pytest.mark.parametrize(
    'path',
    sorted(
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / PACKAGE).rglob('*.cu*')
    ),
)
def test_cuda_source_is_short(path):
    assert [*file_length_violations((ROOT / path).read_text(), path)] == []


PLANTED = {
    'op-owns-module': ('ops/a.py', 'from torch import nn\nnn.Module'),
    'op-owns-parameter': ('ops/a.py', 'from torch.nn import Parameter'),
    'op-imports-host': ('ops/a.py', 'import mmengine'),
    'op-imports-layer': ('ops/scan/a.py', 'from ...layers import es2d'),
    'op-imports-layer-inside': ('ops/a.py', 'def f():\n    import mmdet'),
    'op-imports-by-name': ('ops/a.py', 'import_module("triton")'),
    'op-imports-kernels': ('ops/__init__.py', 'from .triton import sums'),
    'triton-in-a-scan': ('ops/scan/torch_scan.py', 'import triton'),
    'kernels-in-a-scan': ('ops/scan/backend.py', 'from ..triton import sums'),
    'scan-in-a-kernel': ('ops/triton/sums.py', 'from ..scan import naive'),
    'language-in-another-file': ('ops/triton/sums.py', 'import mamba_ssm'),
    'layer-imports-host': ('layers/a.py', 'from mmengine.model import x'),
    'layer-imports-kernel': ('layers/a.py', 'from ..ops.triton import sums'),
    'layer-imports-kernels': ('layers/a.py', 'from ..ops import triton'),
    'layer-imports-fast': ('layers/a.py', 'from ..fast import run_block'),
    'layer-imports-triton': ('layers/a.py', 'import triton'),
    'layer-imports-backbone': ('layers/a.py', 'import evmamba_mm.backbones.b'),
    'layer-imports-root': ('layers/a.py', 'from evmamba_mm import backbones'),
    'fast-imports-backbone': ('fast/a.py', 'from ..backbones import b'),
    'fast-imports-host': ('fast/a.py', 'import mmengine'),
    'fast-imports-by-name': (
        'fast/a.py',
        'import_module("..backbones", __package__)',
    ),
    'backbone-imports-host': ('backbones/a.py', 'import mmseg.models'),
    'backbone-imports-op': ('backbones/a.py', 'from ..ops import scan'),
    'compat-imports-backbone': ('compat/a.py', 'from .. import backbones'),
    'dataset-imports-torch': ('datasets/a.py', 'import torch'),
    'checkpoint-imports-layer': ('checkpoint.py', 'from .layers import a'),
    'no-such-room': ('misc.py', ''),
    'swallowed-arguments': ('ops/a.py', 'def f(**kwargs): pass'),
    'changed-path': ('ops/a.py', 'import sys\nsys.path.insert(0, ".")'),
    'long-file': ('ops/a.py', '\n' * MAX_FILE_LINES),
    'long-kernel-file': ('ops/triton/a.py', '\n' * MAX_KERNEL_FILE_LINES),
    'long-function': (
        'ops/a.py',
        'def f():\n' + '    f()\n' * MAX_FUNCTION_LINES,
    ),
}


@pytest.mark.parametrize('path, source', PLANTED.values(), ids=PLANTED)
def test_planted_violation_is_found(path, source):
    assert len(violations(source, f'{PACKAGE}/{path}')) >= 1


@pytest.mark.parametrize(
    'path, source',
    [
        ('ops/a.py', 'import math\nimport torch\nfrom .b import c'),
        ('ops/triton/sums.py', 'import triton.language as tl'),
        ('ops/triton/sums.py', '\n' * MAX_FILE_LINES),
        ('ops/scan/mamba_scan.py', 'def f():\n    import mamba_ssm'),
        ('ops/scan/cuda/host.py', 'from ...triton.sums import sum_parts'),
        ('fast/a.py', 'import_module(".blocks", __package__)'),
        ('fast/a.py', 'from ..ops.triton.sums import channel_sums'),
        ('backbones/a.py', 'from ..fast import run_block'),
        ('layers/a.py', 'from torch import nn\nfrom evmamba_mm.ops import b'),
        ('backbones/a.py', 'from mmengine.registry import MODELS'),
        ('ops/__init__.py', 'from .scan import selective_scan'),
    ],
)
def test_legal_source_passes(path, source):
    assert violations(source, f'{PACKAGE}/{path}') == []
