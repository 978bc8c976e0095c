"""Tells whether somebody has edited the source of what kernels compute.

The kernels would go on computing the former layers.
"""

import ast
import hashlib
import importlib
import inspect
import re

from .. import layers

# Of the files whose blocks the kernels compute. After an edit the layers run,
# until the kernels compute the same and its digest stands here;
# tests/fast/test_sources.py prints it.
DIGESTS = {
    '__init__': '1a5857a3',
    'drop_path': '836f9892',
    'es2d': '4f2ce213',
    'evss_block': 'b2687145',
    'inverted_residual': '1bcc1a5f',
    'layer_norm': '946909bd',
    'patch_embed': '8d50e949',
    'patch_merging': 'ab1ca02b',
    'scan_mixer': '7cf7ec15',
    'squeeze_excite': '45cf6761',
    'ss2d': 'a0533f8d',
}


def digest(text: str) -> str | None:
    """Digest of a file's code, or None where it is none.

    Comments, docstrings and formatting are no part of it.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            del node.body[0]
    # Some versions of Python leave out empty fields.
    written = re.sub(r'\w+=\[\]|[, ]', '', ast.dump(tree))
    return hashlib.sha256(written.encode()).hexdigest()[:8]


def source(name: str) -> str | None:
    """The text of a file of the layers, None where it is missing."""
    home = layers.__name__
    path = home if name == '__init__' else f'{home}.{name}'
    try:
        return inspect.getsource(importlib.import_module(path))
    except (OSError, TypeError):
        return None


def edited_source() -> str | None:
    """A file that the kernels do not compute, or None."""
    for name, expected in DIGESTS.items():
        text = source(name)
        if text is not None and digest(text) not in (expected, None):
            return f'layers/{name}.py'
    return None
