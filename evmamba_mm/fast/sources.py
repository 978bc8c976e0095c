"""Tells whether somebody has edited a forward that kernels compute.

The kernels would go on computing the former one.
"""

import hashlib
import inspect
import io
import tokenize
from collections.abc import Callable

from .. import layers

# Of the forwards that the kernels compute. After an edit the layers run, until
# the kernels compute the same and its digest stands here;
# tests/fast/test_sources.py prints it.
DIGESTS = dict(
    ConvSqueezeExcite='41acfaf3',
    DropPath='7265f644',
    EVSSBlock='751520f5',
    InvertedResidual='26584f7b',
    LayerNorm='9423b244',
    LayerNorm2d='cd5599ca',
    PatchEmbed='1d0cc5db',
    PatchMerging='9c5c6032',
    ScanMixer='0e78779e',
    SqueezeExcite='8a984859',
)
_IGNORED = (tokenize.COMMENT, tokenize.NL)


def digest(function: Callable) -> str | None:
    """Digest of a function's code, or None where its source is missing.

    Comments, docstrings and blank lines are no part of it.
    """
    try:
        text = inspect.cleandoc('\n' + inspect.getsource(function))
    except (OSError, TypeError):
        return None
    tokens = tokenize.generate_tokens(io.StringIO(f'{text}\n').readline)
    words = [
        token.string.strip() or tokenize.tok_name[token.type]
        for token in tokens
        if token.type not in _IGNORED and not token.string.startswith('"""')
    ]
    return hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]


def edited_layer() -> str | None:
    """Name of a layer whose forward the kernels do not compute, or None."""
    for name, expected in DIGESTS.items():
        if digest(getattr(layers, name).forward) not in (expected, None):
            return name
    return None
