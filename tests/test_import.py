"""What `import evmamba_mm` says and brings along."""

import subprocess
import sys

IMPORT = """
import sys
import torch
before = 'torch._dynamo' in sys.modules
import evmamba_mm
assert before or 'torch._dynamo' not in sys.modules
hosts = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm'}
assert not hosts & set(sys.modules), hosts & set(sys.modules)
"""


def test_import_prints_nothing_and_leaves_the_compiler_alone():
    result = subprocess.run(
        [sys.executable, '-c', IMPORT], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, ''), result.stderr
    assert result.stderr == ''
