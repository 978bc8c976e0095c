import sys

import torch

from evmamba_mm import compat

from .processes import run_python

HEAVY = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision')


def state():
    return list(sys.meta_path), torch.serialization.get_safe_globals()


def test_second_call_changes_and_says_nothing(package_log):
    compat.apply()
    package_log.clear()
    before = state()
    compat.apply()
    assert state() == before
    assert package_log.records == []


def test_imports_no_toolbox():
    # torch and mmengine may bring a toolbox in by themselves.
    source = f"""
import sys
import mmengine.analysis, mmengine.runner, torch
before = set(sys.modules)
from evmamba_mm import compat
compat.apply()
print([name for name in {HEAVY} if name in set(sys.modules) - before])
"""
    assert run_python('-c', source).lines()[-1] == '[]'
