"""Edits of the layers' source, which the kernels do not follow."""

import pytest
from torch import nn

from evmamba_mm import layers
from evmamba_mm.fast import difference, sources, standard
from evmamba_mm.fast.parts import KINDS
from evmamba_mm.layers import ES2D, SS2D, ScanMixer

from .changes import BLOCKS, built, input_of, odd

HOME = layers.__name__


@pytest.mark.parametrize('name', sources.DIGESTS)
def test_the_kernels_compute_the_source_that_is_there(name):
    found = sources.digest(sources.source(name))
    assert found == sources.DIGESTS[name], (
        f'layers/{name}.py was edited: where the kernels in evmamba_mm/fast '
        f'compute the same, write {found!r} into evmamba_mm/fast/sources.py'
    )


def test_every_file_of_a_block_has_a_digest():
    homes = {base.__module__ for kind in KINDS for base in kind.__mro__}
    ours = {home for home in homes if home.startswith(f'{HOME}.')}
    files = sources.DIGESTS.keys() - {'__init__'}
    assert ours == {f'{HOME}.{name}' for name in files}


@pytest.mark.parametrize('kind', BLOCKS)
def test_an_edited_file_runs(kind, monkeypatch):
    block, x = built(kind), input_of(kind)
    assert difference(block, x) is None
    assert sources.edited_source() is None
    monkeypatch.setitem(sources.DIGESTS, 'layer_norm', 'former')
    monkeypatch.setattr(standard, '_EDITED', sources.edited_source())
    why = difference(block, x)
    assert why == 'the source of layers/layer_norm.py was edited'


@pytest.mark.parametrize(
    ('name', 'old', 'new'),
    [
        ('layer_norm', 'class LayerNorm(nn.LayerNorm)', 'class LayerNorm(X)'),
        ('patch_merging', 'channels_last', 'my_channels_last'),
        ('squeeze_excite', 'import torch.nn.functional as F', 'F = mine'),
        (
            'evss_block',
            'def forward',
            'def __call__(self): pass\n    def forward',
        ),
        ('ss2d', 'FOUR_DIRECTIONS', 'FIVE_DIRECTIONS'),
        ('__init__', 'from .inverted_residual', 'from .mine'),
    ],
)
def test_edits_beside_a_forward_are_seen(name, old, new, monkeypatch):
    text = sources.source(name)
    assert old in text
    edited = text.replace(old, new, 1)
    monkeypatch.setattr(
        sources, 'source', lambda asked: edited if asked == name else None
    )
    assert sources.edited_source() == f'layers/{name}.py'


@pytest.mark.parametrize('kind', [ES2D, SS2D])
def test_a_forward_that_a_mixer_has_of_its_own(kind, monkeypatch):
    block, x = built('evss'), input_of('evss')
    monkeypatch.setattr(kind, 'forward', ScanMixer.scan)
    assert difference(block, x) == f'{kind.__name__} has a patched forward'


def test_code_that_a_notebook_reloads_into_a_function(monkeypatch):
    block, x = built('evss'), input_of('evss')
    assert difference(block, x) is None
    monkeypatch.setattr(ScanMixer.forward, '__code__', odd.__code__)
    why = 'ScanMixer.forward has a patched __code__'
    assert difference(block, x) == why


def test_a_forward_of_another_class():
    block, x = built('evss'), input_of('evss')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.GELU, 'forward', nn.ReLU.forward)
        assert difference(block, x) == 'GELU has a patched forward'
    assert difference(block, x) is None


def test_comments_and_docstrings_are_no_edits():
    plain = 'class C:\n    def f(x):\n        return x + 1\n'
    told = (
        '"""Words."""\nclass C:\n    """Words."""\n    def f(x):\n'
        '        """Words.\n\n        More.\n        """\n        # Why.\n\n'
        '        return x + 1  # here\n'
    )
    assert sources.digest(told) == sources.digest(plain)
    assert sources.digest(plain.replace('1', '2')) != sources.digest(plain)
    moved = plain.replace('        return', '        if x: return')
    assert sources.digest(moved) != sources.digest(plain)


def test_formatting_is_no_edit():
    plain = "def f(x, y):\n    return x('a'), y\n"
    black = (
        'def f(\n    x,\n    y,\n):\n    return (\n        x("a"),\n'
        '        y,\n    )\n'
    )
    assert sources.digest(plain) == sources.digest(black)


def test_no_source_is_no_edit(monkeypatch):
    assert sources.digest('f = [') is None
    monkeypatch.setattr(sources, 'source', lambda name: None)
    assert sources.edited_source() is None
