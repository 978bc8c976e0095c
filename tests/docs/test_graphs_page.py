"""The Python blocks of docs/graphs.md."""

import runpy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS

from evmamba_mm import CUDAGraphHook

from .follow import ROOT
from .page import read_blocks


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for block in read_blocks(ROOT / 'docs' / 'graphs.md'):
        (tmp_path / block.file_name).write_text(block.text)
    return tmp_path


def test_config_adds_the_hook_to_those_of_its_base(folder):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    *others, hook = Config.fromfile(folder / 'with_graphs.py').custom_hooks
    assert [other.type for other in others] == ['EMAHook']
    assert isinstance(HOOKS.build(hook), CUDAGraphHook)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='CUDA graphs need a GPU'
)
def test_script_runs(folder):
    names = runpy.run_path(str(folder / 'without_toolbox.py'))
    gradients = [p.grad for p in names['backbone'].parameters()]
    assert all(gradient is not None for gradient in gradients)
