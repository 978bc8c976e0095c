"""No key of a config is misspelt: each is taken by what it is meant for.

The model is built by the other tests, and refuses what it does not know.
"""

import argparse
import inspect

import pytest
from mmengine.config import DictAction
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    VISUALIZERS,
    DefaultScope,
)
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .leaves import LEAVES, load

# Read from the config by the runner or by the hosts' tools, but no argument
# of the runner.
READ_ELSEWHERE = {
    *('custom_imports', 'model_wrapper_cfg', 'sync_bn'),
    *('tta_model', 'tta_pipeline'),
}
# Names that the hosts' bases and ours give to values of their own.
VARIABLES = {
    'backend_args',
    'bgr_mean',
    'bgr_std',
    'crop_size',
    'data_root',
    'dataset_type',
    'cached',
    'classes',
    'enhance',
    'epochs',
    'erasing',
    'image_pipeline',
    'images',
    'img_ratios',
    'in_memory',
    'norm_cfg',
    'optimizer',
    'pixel_mean',
    'pixel_std',
    'policies',
    'rand_augment',
    'few_sizes',
    'scales',
    'size',
    'stored_size',
    'test_pipeline',
    'train_pipeline',
    'vis_backends',
}
PARAMWISE = {
    'bias_decay_mult',
    'custom_keys',
    'flat_decay_mult',
    'norm_decay_mult',
}
ONE_OF_EACH = (
    'evmamba-tiny_16xb128-amp-300e_in1k',
    'retinanet_evmamba-tiny_fpn_8xb2-1x_coco',
    'mask-rcnn_evmamba-tiny_fpn_8xb2-amp-ms-crop-3x_coco',
    'upernet_evmamba-tiny_4xb4-160k_ade20k-640x640',
)
one_of_each = pytest.mark.parametrize('leaf', ONE_OF_EACH, indirect=True)


def arguments(function):
    return set(inspect.signature(function).parameters)


def test_top_level(config):
    legal = arguments(Runner.__init__) | READ_ELSEWHERE | VARIABLES
    assert set(config.keys()) - legal == set()


def test_the_package_is_imported(config):
    assert config.custom_imports.imports == ['evmamba_mm']
    assert config.custom_imports.allow_failed_imports is False


def test_optimizer(config):
    wrapper = config.optim_wrapper
    kinds = {'OptimWrapper': OptimWrapper, 'AmpOptimWrapper': AmpOptimWrapper}
    kind = kinds[wrapper.type]
    legal = arguments(kind.__init__) | arguments(OptimWrapper.__init__)
    legal |= {'type', 'constructor', 'paramwise_cfg'}
    assert set(wrapper) - legal == set()
    assert set(wrapper.get('paramwise_cfg', {})) - PARAMWISE == set()
    assert set(config.auto_scale_lr) <= {'enable', 'base_batch_size'}


@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_data(part, config):
    loader = config[f'{part}_dataloader']
    # No file is read before the first item is asked for.
    dataset = DATASETS.build({**loader.pop('dataset'), 'lazy_init': True})
    held = getattr(dataset, 'dataset', dataset)
    assert len(held.pipeline.transforms) > 1
    DATA_SAMPLERS.build(
        loader.pop('sampler'), default_args=dict(dataset=range(4), seed=0)
    )
    legal = arguments(DataLoader.__init__) | {'pin_memory', 'collate_fn'}
    if part == 'train':
        legal.add('batch_sampler')
    assert set(loader) - legal == set()


@one_of_each
def test_evaluator(config, tmp_path):
    for part in ('val', 'test'):
        settings = config[f'{part}_evaluator']
        if settings.type == 'CocoMetric':
            annotations = tmp_path / 'instances.json'
            annotations.write_text('{"images": [], "categories": []}')
            settings.ann_file = str(annotations)
        METRICS.build(settings)


@one_of_each
def test_loops(config):
    for part in ('train', 'val', 'test'):
        settings = config[f'{part}_cfg']
        settings.pop('_scope_', None)
        kind = settings.pop('type', None)
        if kind is None:
            kind = 'EpochBasedTrainLoop' if part == 'train' else 'ValLoop'
            settings.pop('by_epoch', None)
        loop = LOOPS.get(kind)
        assert set(settings) - arguments(loop.__init__) == set()


@one_of_each
def test_hooks_and_visualizer(leaf, config, tmp_path):
    visualizer = VISUALIZERS.build(
        {**config.visualizer, 'name': leaf, 'save_dir': str(tmp_path)}
    )
    assert 'LocalVisBackend' in visualizer._vis_backends
    hooks = [*config.default_hooks.values(), *config.get('custom_hooks', [])]
    for settings in hooks:
        # The runner takes it away before it builds the hook.
        settings.pop('priority', None)
        HOOKS.build(settings)


@pytest.mark.parametrize('leaf', ONE_OF_EACH[3:], indirect=True)
def test_multi_scale_test(config):
    config.tta_model.module = config.model
    model = MODELS.build(config.tta_model)
    assert type(model.module.backbone).__name__ == 'EfficientVMamba'


DENSE = [s for s in LEAVES if LEAVES[s].parent.name != 'mmpretrain']


def dictionary(*items):
    """Reads `key=value` items as the hosts' tools read `--cfg-options`."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *items]).cfg_options


@pytest.mark.parametrize('leaf', DENSE[:1])
def test_a_missing_checkpoint_stops_the_training(leaf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(leaf)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        backbone = MODELS.build(config.model.backbone)
    with pytest.raises(FileNotFoundError, match='evmamba-tiny_in1k.pth'):
        backbone.init_weights()


@pytest.mark.parametrize('leaf', DENSE)
def test_the_checkpoint_can_be_turned_off(leaf):
    config = load(leaf)
    assert config.model.backbone.init_cfg.type == 'Pretrained'
    config.merge_from_dict(dictionary('model.backbone.init_cfg=None'))
    assert config.model.backbone.init_cfg is None
