"""Each room of the package imports only what its place in the house allows.

ops -> layers -> backbones, never backwards; outside packages where they are
needed and nowhere else. Read from the syntax tree, so that an import inside
a function counts too.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = 'evmamba_mm'
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Room:
    """What the files of one room may import besides the standard library.

    `within` names modules of the package, `outside` other packages, and
    `single` the one file of the room that may import a further package.
    """

    within: tuple[str, ...]
    outside: tuple[str, ...]
    single: tuple[tuple[str, str], ...] = ()
    modules_allowed: bool = True


ROOMS = {
    'ops': Room(
        within=('ops',),
        outside=('torch',),
        single=(
            ('cuda', 'ops/scan_cuda/compiler'),
            ('numba', 'ops/scan_numba_kernels'),
            ('numpy', 'ops/scan_numba_kernels'),
            ('triton', 'ops/fused/choice'),
            ('triton', 'ops/fused/launch'),
            *(
                ('triton', f'ops/fused/{name}_triton')
                for name in (
                    'activations',
                    'batch_norm',
                    'batch_statistics',
                    'column_sums',
                    'depthwise',
                    'fold',
                    'gated_linear',
                    'gated_linear_add',
                    'gated_linear_backward',
                    'gated_residual',
                    'gates_backward',
                    'group_linear',
                    'merge_norm',
                    'norm',
                    'patch_norm',
                    'pooled_gates',
                    'pooled_norm',
                    'prepare',
                    'scale_add',
                    'squeeze_excite',
                    'sums',
                )
            ),
            ('mamba_ssm', 'ops/scan_mamba'),
            ('selective_scan_cuda', 'ops/scan_mamba'),
        ),
        modules_allowed=False,
    ),
    'layers': Room(within=('ops', 'layers'), outside=('torch',)),
    'backbones': Room(
        within=('layers', 'backbones'), outside=('torch', 'mmengine')
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
    'deploy': Room(within=('layers', 'backbones'), outside=('torch',)),
    'checkpoint': Room(within=(), outside=('torch',)),
    'analysis': Room(within=('ops',), outside=('torch', 'mmengine')),
    'log': Room(within=(), outside=('mmengine',)),
    'version': Room(within=(), outside=()),
    '__init__': Room(
        within=(
            'analysis',
            'backbones',
            'compat',
            'hooks',
            'log',
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
            parent = package[: len(package) - node.level + 1]
            base = '.'.join(
                [*(parent if node.level else []), *filter(None, [node.module])]
            )
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f'{base}.{alias.name}'
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).split('.')[-1]
            first = node.args[0] if node.args else None
            if name in ('import_module', '__import__') and isinstance(
                first, ast.Constant
            ):
                yield node.lineno, first.value


def room_of(path):
    """'evmamba_mm/ops/scan.py' -> 'ops', 'evmamba_mm/log.py' -> 'log'."""
    return Path(path).with_suffix('').parts[1]


def import_violations(tree, path):
    room = ROOMS[room_of(path)]
    here = Path(path).with_suffix('').relative_to(PACKAGE).as_posix()
    extra = {package for package, file in room.single if file == here}
    for line, module in imported_modules(tree, path):
        top, _, rest = module.partition('.')
        if top in sys.stdlib_module_names or module == PACKAGE:
            continue
        if top == PACKAGE:
            legal = rest.split('.')[0] in room.within
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


def file_length_violations(source, path):
    lines = len(source.splitlines())
    if lines >= MAX_FILE_LINES:
        yield f'{path} has {lines} lines'


def length_violations(source, path):
    yield from file_length_violations(source, path)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length >= MAX_FUNCTION_LINES:
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
    'op-imports-layer': ('ops/a.py', 'from ..layers import es2d'),
    'op-imports-layer-inside': ('ops/a.py', 'def f():\n    import mmdet'),
    'op-imports-by-name': ('ops/a.py', 'import_module("triton")'),
    'triton-in-a-second-file': ('ops/scan_torch.py', 'import triton'),
    'kernel-in-another-file': ('ops/fused/norm_triton.py', 'import mamba_ssm'),
    'layer-imports-host': ('layers/a.py', 'from mmengine.model import x'),
    'layer-imports-backbone': ('layers/a.py', 'import evmamba_mm.backbones.b'),
    'layer-imports-root': ('layers/a.py', 'from evmamba_mm import backbones'),
    'backbone-imports-host': ('backbones/a.py', 'import mmseg.models'),
    'backbone-imports-op': ('backbones/a.py', 'from ..ops import scan'),
    'compat-imports-backbone': ('compat/a.py', 'from .. import backbones'),
    'dataset-imports-torch': ('datasets/a.py', 'import torch'),
    'checkpoint-imports-layer': ('checkpoint.py', 'from .layers import a'),
    'no-such-room': ('misc.py', ''),
    'swallowed-arguments': ('ops/a.py', 'def f(**kwargs): pass'),
    'changed-path': ('ops/a.py', 'import sys\nsys.path.insert(0, ".")'),
    'long-file': ('ops/a.py', '\n' * MAX_FILE_LINES),
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
        ('ops/fused/norm_triton.py', 'import triton.language as tl'),
        ('ops/scan_mamba.py', 'def f():\n    import mamba_ssm'),
        ('layers/a.py', 'from torch import nn\nfrom evmamba_mm.ops import b'),
        ('backbones/a.py', 'from mmengine.registry import MODELS'),
        ('ops/__init__.py', 'from .scan import selective_scan'),
    ],
)
def test_legal_source_passes(path, source):
    assert violations(source, f'{PACKAGE}/{path}') == []
