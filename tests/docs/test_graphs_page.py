"""The Python blocks of docs/graphs.md."""

import runpy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, DefaultScope

from evmamba_mm import BatchCanvasPad, BatchDataPreprocessor, CUDAGraphHook

from .follow import ROOT
from .page import read_blocks


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for block in read_blocks(ROOT / 'docs' / 'graphs.md'):
        (tmp_path / block.file_name).write_text(block.text)
    return tmp_path


def test_config_has_parts_that_can_be_built(folder):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    config = Config.fromfile(folder / 'fast_training.py')
    (hook,) = config.custom_hooks
    assert isinstance(HOOKS.build(hook), CUDAGraphHook)
    model = dict(config.model, data_preprocessor=config.data_preprocessor)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        classifier = MODELS.build(model)
        wrapper = build_optim_wrapper(classifier, config.optim_wrapper)
    assert len(wrapper.optimizer.param_groups) == 1
    assert isinstance(classifier.data_preprocessor, BatchDataPreprocessor)


@pytest.mark.parametrize(
    ('name', 'shapes'),
    [
        ('fast_detector.py', 4),
        ('fast_targets.py', 4),
        ('multi_scale.py', 10),
    ],
)
def test_detector_has_a_graph_for_each_canvas(name, shapes, folder):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    config = Config.fromfile(folder / name)
    (hook,) = config.custom_hooks
    assert HOOKS.build(hook).shapes == shapes
    config.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(config.model)
    (pad,) = detector.data_preprocessor.batch_augments
    assert isinstance(pad, BatchCanvasPad)
    assert len(pad.canvases) == shapes
    for module in hook.module:
        assert detector.get_submodule(module)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='CUDA graphs need a GPU'
)
def test_script_runs(folder):
    names = runpy.run_path(str(folder / 'without_toolbox.py'))
    gradients = [p.grad for p in names['backbone'].parameters()]
    assert all(gradient is not None for gradient in gradients)
