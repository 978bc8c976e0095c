"""`make reference`: the API's pages from the docstrings."""

import re
from pathlib import Path

import pytest

from .follow import ROOT


def test_every_room_of_the_makefile_has_a_page(tmp_path):
    pdoc = pytest.importorskip('pdoc', reason='it comes by the extra docs')
    for name in ('timm', 'huggingface_hub'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    makefile = (ROOT / 'Makefile').read_text().replace('\\\n', ' ')
    (listed,) = re.findall(r'^ROOMS := (.*)$', makefile, re.MULTILINE)
    names = ['evmamba_mm', *(f'evmamba_mm.{n}' for n in listed.split())]
    pdoc.render.configure(docformat='google')
    pdoc.pdoc(*names, output_directory=tmp_path)
    pages = {
        '.'.join(page.relative_to(tmp_path).with_suffix('').parts): page
        for page in Path(tmp_path).rglob('*.html')
    }
    assert set(names) <= set(pages)
    for name, said in (
        ('evmamba_mm', 'Stages to return'),
        ('evmamba_mm.optim', 'LayerDecayOptimWrapperConstructor'),
        ('evmamba_mm.apis', 'fetch_released'),
        ('evmamba_mm.hub.mixin', 'push_to_hub'),
    ):
        assert said in pages[name].read_text(), name
