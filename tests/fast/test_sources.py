"""Edits of a forward's source, which the kernels do not follow."""

import linecache

import pytest

from evmamba_mm import layers
from evmamba_mm.fast import difference, sources, standard

from .changes import BLOCKS, built, input_of


@pytest.mark.parametrize('name', sources.DIGESTS)
def test_the_kernels_compute_the_forward_that_is_there(name):
    found = sources.digest(getattr(layers, name).forward)
    assert found == sources.DIGESTS[name], (
        f'{name}.forward was edited: where the kernels in evmamba_mm/fast '
        f'compute the same, write {found!r} into evmamba_mm/fast/sources.py'
    )


@pytest.mark.parametrize('kind', BLOCKS)
def test_an_edited_forward_runs(kind, monkeypatch):
    block, x = built(kind), input_of(kind)
    assert difference(block, x) is None
    assert sources.edited_layer() is None
    monkeypatch.setitem(sources.DIGESTS, 'LayerNorm', 'former')
    monkeypatch.setattr(standard, '_EDITED', sources.edited_layer())
    why = difference(block, x)
    assert why == 'the source of LayerNorm.forward was edited'


def written(text):
    """A function whose source is the text."""
    name = f'<{hash(text)}>'
    lines = text.splitlines(keepends=True)
    linecache.cache[name] = (len(text), None, lines, name)
    space = {}
    exec(compile(text, name, 'exec'), space)
    return space['f']


def test_comments_and_docstrings_are_no_edits():
    plain = 'def f(x):\n    if x:\n        x = x + 1\n    return x\n'
    told = (
        'def f(x):\n    """Words.\n\n    More.\n    """\n    # Why.\n\n'
        '    if x:\n        x = x + 1  # here\n    return x\n'
    )
    assert sources.digest(written(told)) == sources.digest(
        written(plain.replace(':', ':\n    """Other."""', 1))
    )
    moved = plain.replace('\n    return', '\n        return')
    other = plain.replace('+ 1', '+ 2')
    texts = (plain, moved, other)
    assert len({sources.digest(written(text)) for text in texts}) == 3


def test_no_source_is_no_edit():
    assert sources.digest(len) is None
