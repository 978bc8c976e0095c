"""mmpretrain beside a transformers that lacks the names it imports.

A stand-in for transformers has what its fifth version has of these names.
"""

from importlib import metadata

import pytest

from evmamba_mm.compat import mmpretrain_multimodal

from .processes import run_python

FILES = {
    '__init__.py': """
from .models.auto.auto_factory import _BaseAutoModelClass

def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
    auto = name.startswith('AutoModel')
    bases = (_BaseAutoModelClass,) if auto else ()
    return type(name, bases, dict(from_config=None, from_pretrained=None))
""",
    'activations.py': 'ACT2FN = {}\n',
    'modeling_outputs.py': 'class ModelOutput: pass\n',
    'modeling_utils.py': 'class PreTrainedModel: pass\n',
    'models/__init__.py': '',
    'models/auto/__init__.py': '',
    'models/auto/auto_factory.py': 'class _BaseAutoModelClass: pass\n',
}
IMPORT = """
import mmpretrain
from mmpretrain.registry import MODELS
from mmpretrain.models import ResNet
from mmpretrain.utils.dependency import WITH_MULTIMODAL
print(WITH_MULTIMODAL, ResNet.__name__)
try:
    MODELS.build(dict(type='BlipCaption'))
except ImportError as error:
    print('multi-modal dependencies' in str(error))
"""


@pytest.fixture(scope='module')
def transformers_5(tmp_path_factory):
    """A folder to import transformers 5 from, as far as mmpretrain looks."""
    folder = tmp_path_factory.mktemp('site')
    for name, content in FILES.items():
        path = folder / 'transformers' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    info = folder / 'transformers-5.0.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: transformers\nVersion: 5.0.0\n'
    )
    return folder


def test_mmpretrain_breaks_without_the_mend(transformers_5, libraries_python):
    outcome = run_python(
        '-c', IMPORT, folders=[transformers_5], warm=libraries_python
    )
    outcome.assert_fault('NoneType takes no arguments')


def test_mmpretrain_imports_and_the_log_says_so_once(
    transformers_5, libraries_python
):
    source = 'import evmamba_mm\n' + IMPORT
    outcome = run_python(
        '-c', source, folders=[transformers_5], warm=libraries_python
    )
    lines = outcome.lines()
    assert lines[-2:] == ['False ResNet', 'True']
    log = [
        line for line in lines + outcome.log.splitlines() if '<4.52' in line
    ]
    assert len(log) == 1 and 'transformers 5.0.0' in log[0]


@pytest.mark.parametrize(
    'version, broken',
    [
        ('4.28.0', False),
        ('4.51.3', False),
        ('4.52.0', True),
        ('4.57.3', True),
        ('5.0.0rc1', True),
        ('5.23.0', True),
    ],
)
def test_versions(monkeypatch, version, broken):
    monkeypatch.setattr(metadata, 'version', lambda name: version)
    found = mmpretrain_multimodal._broken_version()
    assert found == (version if broken else None)


def test_without_transformers_nothing_is_broken(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, 'version', version)
    assert mmpretrain_multimodal._broken_version() is None
