"""Edits of a forward's source, which the kernels do not follow."""

import linecache
import subprocess
import sys
from operator import attrgetter

import pytest
from torch import nn

from evmamba_mm import layers
from evmamba_mm.fast import difference, sources, standard
from evmamba_mm.layers import ES2D, SS2D, ScanMixer

from .changes import BLOCKS, built, input_of, odd


@pytest.mark.parametrize('name', sources.DIGESTS)
def test_the_kernels_compute_the_source_that_is_there(name):
    found = sources.digest(attrgetter(name)(layers))
    assert found == sources.DIGESTS[name], (
        f'{name} was edited: where the kernels in evmamba_mm/fast compute '
        f'the same, write {found!r} into evmamba_mm/fast/sources.py'
    )


@pytest.mark.parametrize('kind', BLOCKS)
def test_an_edited_forward_runs(kind, monkeypatch):
    block, x = built(kind), input_of(kind)
    assert difference(block, x) is None
    assert sources.edited_source() is None
    monkeypatch.setitem(sources.DIGESTS, 'LayerNorm.forward', 'former')
    monkeypatch.setattr(standard, '_EDITED', sources.edited_source())
    why = difference(block, x)
    assert why == 'the source of LayerNorm.forward was edited'


@pytest.mark.parametrize('kind', [ES2D, SS2D])
def test_a_forward_that_a_mixer_has_of_its_own(kind, monkeypatch):
    monkeypatch.setattr(kind, 'forward', ScanMixer.scan)
    assert sources.edited_source() == f'{kind.__name__}.forward'


def test_code_that_a_notebook_reloads_into_a_function(monkeypatch):
    block, x = built('evss'), input_of('evss')
    assert difference(block, x) is None
    monkeypatch.setattr(ScanMixer.forward, '__code__', odd.__code__)
    assert difference(block, x) == 'ES2D has a patched forward'


def test_a_forward_of_another_class():
    block, x = built('evss'), input_of('evss')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.GELU, 'forward', nn.ReLU.forward)
        assert difference(block, x) == 'GELU has a patched forward'
    assert difference(block, x) is None


PATCHED_EARLIER = """
import torch
from torch import nn

if {replaced}:
    class Conv2d(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).sin()
    nn.Conv2d = Conv2d
else:
    nn.Conv2d.forward = lambda conv, x: x.sin()

from evmamba_mm.fast import difference
from evmamba_mm.layers import PatchEmbed

print(difference(PatchEmbed(3, 8), torch.ones(1, 3, 8, 8)))
"""


@pytest.mark.parametrize('replaced', [True, False])
def test_torch_patched_before_the_import(replaced):
    script = PATCHED_EARLIER.format(replaced=replaced)
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True
    )
    assert done.stdout == 'Conv2d has a patched forward\n', done.stderr


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


def test_formatting_is_no_edit():
    plain = "def f(x, y):\n    return x('a'), y\n"
    black = (
        'def f(\n    x,\n    y,\n):\n    return (\n        x("a"),\n'
        '        y,\n    )\n'
    )
    assert sources.digest(written(plain)) == sources.digest(written(black))


def test_no_source_is_no_edit():
    assert sources.digest(len) is None
    # A file that was edited after its import.
    function = written('def f():\n    pass\n')
    name = function.__code__.co_filename
    linecache.cache[name] = (1, None, ['f = [\n', '1]\n'], name)
    assert sources.digest(function) is None
