"""What the pages name is there: files, options, tables, backends, extras."""

import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch

from evmamba_mm import EfficientVMamba
from evmamba_mm.ops import BACKENDS

from .follow import ROOT

PAGES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'CHANGELOG.md',
    *sorted(ROOT.glob('docs/*.md')),
]
DOCS = ROOT / 'docs'
INSTALL = DOCS / 'install.md'
_LINK = re.compile(r'\]\((?!https?:)([^)\s]+)\)')
_HEADING = re.compile(r'^#+ (.*)$', re.MULTILINE)
_CODE = re.compile(r'^```.*?^```', re.DOTALL | re.MULTILINE)
_TOOL = re.compile(
    r'(?<!tests/)\btools/(?P<tool>[\w/]+)\.py(?P<arguments>[^\n`|;]*)'
)
# Ours: a toolbox's own has its name and :: before it.
_CONFIG = re.compile(r'(?<![:\w./-])[\w./-]+_\d+xb\d+[\w-]*\.py')
_VARIABLE = re.compile(r'\bEVMAMBA_[A-Z0-9_]+')
# commands.md shows how it is answered.
_MISSPELT = 'evmamba-atto_1xb16-15e_cell.py'
# What replaced it, and what a former run was made with.
_FORMER = {
    ROOT / 'CHANGELOG.md': {'EVMAMBA_FUSED_BACKEND'},
}
WITH_TASKS = ('analysis_tools/benchmark', 'paper/figures')
each_page = pytest.mark.parametrize(
    'page', PAGES, ids=lambda p: str(p.relative_to(ROOT))
)


def slug(heading):
    """The anchor of a heading."""
    text = re.sub(r'[^\w\- ]', '', heading.lower())
    return text.replace(' ', '-')


def anchors(page):
    text = _CODE.sub('', page.read_text())
    return {slug(heading) for heading in _HEADING.findall(text)}


def first_column(page, head):
    """Names in the first column of the table with this first head."""
    table = page.read_text().partition(f'| {head} |')[2].partition('\n\n')[0]
    return re.findall(r'^\| `?([^|`]+)`? \|', table, re.MULTILINE)


@each_page
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_index_names_every_page():
    listed = _LINK.findall((DOCS / 'README.md').read_text())
    pages = {page.name for page in DOCS.glob('*.md')} - {'README.md'}
    assert pages <= set(listed)
    assert not [link for link, n in Counter(listed).items() if n > 1]
    assert 'docs/README.md' in _LINK.findall((ROOT / 'README.md').read_text())


@each_page
def test_tables_are_up_to_date(page):
    for name in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'tools' / 'paper')
        markdown = importlib.import_module('writing.markdown')
    text = page.read_text()
    assert markdown.fill(text, page.parent) == text


@each_page
def test_configs_are_there(page):
    names = {path.name for path in (ROOT / 'configs').rglob('*.py')}
    for config in set(_CONFIG.findall(page.read_text())):
        if config.endswith(_MISSPELT):
            continue
        if config.startswith('configs/'):
            assert (ROOT / config).is_file(), config
        assert config.rpartition('/')[2] in names, config


@functools.cache
def help_of(tool, task):
    """The options that a tool, or a task of it, says that it takes."""
    arguments = [task] if task else []
    result = subprocess.run(
        [sys.executable, f'tools/{tool}.py', *arguments, '-h'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return set(re.findall(r'(?<!\S)\[?(--?[a-z][\w-]*)', result.stdout))


def commands(page):
    """Yields (tool, task, options) of each command line of a page."""
    text = re.sub(r'\\\n\s*', ' ', page.read_text())
    # The usage of a tool goes on in a line that is further indented.
    text = re.sub(r'\n {8,}(?=\[)', ' ', text)
    for match in _TOOL.finditer(text):
        arguments = match['arguments'].partition('#')[0].split()
        task = arguments[0] if arguments else ''
        if match['tool'] not in WITH_TASKS:
            task = ''
        elif not task.isidentifier() and not task.replace('-', '').isalpha():
            continue
        options = {
            option.strip('[]').partition('=')[0]
            for option in arguments
            if option.strip('[]').startswith('-')
        }
        yield match['tool'], task, options


@each_page
def test_tools_take_the_options_that_are_shown(page):
    for tool, task, options in commands(page):
        assert (ROOT / 'tools' / f'{tool}.py').is_file(), tool
        if options - {'-h', '-o'}:
            assert options <= help_of(tool, task), (tool, task)


# Scripts that other scripts start, and no user.
STARTED_BY_OTHERS = {
    'tools/torchrun.py',
    'tools/torchrun.sh',
    'tools/misc/faults/lab.py',
}


def test_every_tool_has_a_line():
    text = ''.join(page.read_text() for page in PAGES)
    for tool in (ROOT / 'tools').rglob('*.*'):
        main = tool.suffix == '.py' and '\nif __name__' in tool.read_text()
        if main or tool.suffix == '.sh':
            path = tool.relative_to(ROOT).as_posix()
            assert path in text or path in STARTED_BY_OTHERS


def test_backends_are_those_of_the_code():
    assert set(first_column(INSTALL, 'backend')) == set(BACKENDS) - {'auto'}
    text = INSTALL.read_text()
    assert '`EVMAMBA_FUSED`' in text
    assert all(f'`{word}`' in text for word in ('auto', 'true', 'false'))


def test_options_are_those_of_the_backbone():
    text = (DOCS / 'configs.md').read_text().partition('| option |')[2]
    shown = re.findall(
        r'^\| `(\w+)`( \*)? \| `(.*?)` \|',
        text.partition('\n\n')[0],
        re.MULTILINE,
    )
    parameters = inspect.signature(EfficientVMamba).parameters
    defaults = {name: p.default for name, p in parameters.items()}
    assert {name: eval(default) for name, _, default in shown} == defaults
    by_stage = {name: [eval(value)] * 4 for name, star, value in shown if star}
    EfficientVMamba('atto', **by_stage)
    lists = {
        name for name, p in parameters.items() if 'Sequence' in str(p)
    } - {'out_indices', 'block_types'}
    assert by_stage.keys() == lists


def test_extras_and_requirements_are_those_of_the_project():
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 has none')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies']
    assert set(first_column(INSTALL, 'extra')) == {'none', *extras}
    needed = {*project['dependencies']}.union(*extras.values())
    text = INSTALL.read_text()
    for requirement in needed:
        name = re.match(r'[\w-]+', requirement)[0]
        assert name in text, requirement


def test_variables_are_those_of_the_code():
    files = [
        file
        for folder in ('evmamba_mm', 'tools', 'tests')
        for file in (ROOT / folder).rglob('*.py')
        if file.parent.name != 'docs'
    ]
    known = set(_VARIABLE.findall('\n'.join(f.read_text() for f in files)))
    for page in PAGES:
        told = set(_VARIABLE.findall(page.read_text()))
        assert told - _FORMER.get(page, set()) <= known, page
    package = {
        variable
        for file in files
        if file.is_relative_to(ROOT / 'evmamba_mm')
        for variable in _VARIABLE.findall(file.read_text())
    }
    assert package <= set(_VARIABLE.findall(INSTALL.read_text()))


def test_an_unknown_backend_is_refused_as_shown(monkeypatch):
    (command, shown) = re.search(
        r'^\$ EVMAMBA_SCAN_BACKEND=(\w+) .*\nValueError: (.*)$',
        INSTALL.read_text(),
        re.MULTILINE,
    ).groups()
    monkeypatch.setenv('EVMAMBA_SCAN_BACKEND', command)
    with pytest.raises(ValueError) as error:
        EfficientVMamba('atto')(torch.rand(1, 3, 64, 64))
    assert str(error.value) == shown


def test_the_cache_is_where_the_page_says(monkeypatch, tmp_path):
    from evmamba_mm.ops.scan.cuda import cache

    row = '| `EVMAMBA_CACHE_DIR` | `$XDG_CACHE_HOME`, without it `~/.cache` |'
    assert row in INSTALL.read_text()
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.delenv('EVMAMBA_CACHE_DIR', raising=False)
    name = f'evmamba_mm-{os.getuid()}'
    assert cache._own_folder() == tmp_path / '.cache' / name
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
    assert cache._own_folder() == tmp_path / 'other' / name
    monkeypatch.setenv('EVMAMBA_CACHE_DIR', str(tmp_path / 'own'))
    assert cache._own_folder() == tmp_path / 'own' / name
