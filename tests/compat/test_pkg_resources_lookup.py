"""mmengine's lookup of packages without pkg_resources."""

import pytest

from evmamba_mm.compat import pkg_resources_lookup

from .processes import run_python

# setuptools of the environment may still bring the real one.
HIDE = """
import sys
from importlib.machinery import PathFinder

class WithoutIt:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition('.')[0] != 'pkg_resources':
            return PathFinder.find_spec(name, path, target)

sys.modules.pop('pkg_resources', None)
sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutIt
import evmamba_mm
"""
LOOKUP = """
from pathlib import Path
from mmengine.config import Config
from mmengine.utils import get_installed_path, is_installed
import torch

assert get_installed_path('torch') == str(Path(torch.__file__).parent)
print(is_installed('torch'), is_installed('not-there'))
"""
BASE = """
text = "_base_ = 'mmdet::_base_/default_runtime.py'"
Path({path!r}).write_text(text)
print(Config.fromfile({path!r}).default_scope)
"""


def test_mmengine_breaks_without_the_mend():
    source = HIDE.replace('import evmamba_mm', '') + LOOKUP
    run_python('-c', source).assert_fault("No module named 'pkg_resources'")


def test_packages_are_found():
    assert run_python('-c', HIDE + LOOKUP).lines()[-1] == 'True False'


def test_a_base_of_a_toolbox_is_found(tmp_path):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    source = HIDE + LOOKUP + BASE.format(path=str(tmp_path / 'config.py'))
    assert run_python('-c', source).lines()[-1] == 'mmdet'


def test_what_is_not_there():
    with pytest.raises(pkg_resources_lookup.DistributionNotFound):
        pkg_resources_lookup.get_distribution('not-there')
    torch = pkg_resources_lookup.get_distribution('torch')
    assert torch.has_metadata('METADATA') and torch.version
    with pytest.raises(FileNotFoundError, match='torch has no nothing'):
        torch.get_metadata('nothing')
