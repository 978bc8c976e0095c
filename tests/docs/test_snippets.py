"""The Python blocks of four pages, and outputs that are shown."""

import functools
import os
import re
import runpy
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS, MODELS, DefaultScope
from torch.nn.functional import softplus

from evmamba_mm import EfficientVMamba
from evmamba_mm.backbones import stages
from evmamba_mm.fast import difference
from evmamba_mm.ops.scan import map_scan

from ..test_checkpoint import released_like
from .follow import ROOT, put_photo_and_weights
from .page import read_blocks

PAGES = ('README.md', 'docs/configs.md', 'docs/export.md', 'docs/inference.md')
BLOCKS = {
    block.file_name: block
    for page in PAGES
    for block in read_blocks(ROOT / page)
    if block.language == 'python'
}
HOSTS = {
    'my_detector.py': 'mmdet',
    'my_segmentor.py': 'mmseg',
    'my_ablation.py': 'mmpretrain',
    'my_variant.py': 'mmpretrain',
}
# Scripts, and the pages that show their only line.
PRINTING = {
    'in_python.py': 'README.md',
    'changed_model.py': 'docs/configs.md',
    'export_backbone.py': 'docs/inference.md',
    'by_timm.py': 'docs/inference.md',
    'export_model.py': 'docs/export.md',
}
PARTS = ('my_parts.py', 'my_parts_config.py')
# What is shown in docs/commands.md and takes no training.
SHOWN = ('convert_checkpoint', 'reproduce', 'tables', 'figures', 'get_flops')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('snippets')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    for name, block in BLOCKS.items():
        (folder / name).write_text(block.text)
    put_photo_and_weights(folder)
    return folder


@pytest.fixture
def run(folder, warm_python):
    return functools.partial(run_script, folder, warm_python.path)


def run_script(folder, python, *command):
    """Runs a Python script; returns its output without log lines."""
    result = subprocess.run(
        [python, *command],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return [line for line in lines if ' - mmengine - ' not in line]


def shown_commands():
    """Yields (arguments, printed lines) of the console blocks."""
    for block in read_blocks(ROOT / 'docs' / 'commands.md'):
        if block.language != 'console':
            continue
        text = block.text.replace('\\\n', ' ')
        for part in text.split('$ ')[1:]:
            command, *printed = part.strip().splitlines()
            words = shlex.split(command)
            tool = words[1].rpartition('/')[2].removesuffix('.py')
            if words[0] == 'python' and tool in SHOWN:
                yield pytest.param(words[1:], printed, id=tool)


def test_every_block_is_known():
    others = {'fused_detector.py', 'predict_images.py'} | {*PARTS}
    assert {*HOSTS, *PRINTING, *others} == set(BLOCKS)


def test_toolboxes_are_imported_after_the_package():
    # The scripts run in a Python that has imported both.
    for block in BLOCKS.values():
        names = re.findall(r'^(?:import|from) (\w+)', block.text, re.MULTILINE)
        hosts = [names.index(x) for x in {*HOSTS.values()} & {*names}]
        assert not hosts or names.index('evmamba_mm') < min(hosts)


@pytest.mark.parametrize('name', HOSTS)
def test_config_builds_and_its_parts_fit(name, folder):
    host = HOSTS[name]
    pytest.importorskip(host, reason=f'{host} is not installed')
    config = Config.fromfile(folder / name)
    assert config.model.backbone.type == 'EfficientVMamba'
    weights = config.model.backbone.pop('init_cfg', None)
    with DefaultScope.overwrite_default_scope(host):
        model = MODELS.build(config.model)
    model = revert_sync_batchnorm(model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.rand(1, 3, 64, 64))
        if host == 'mmseg':
            assert model.decode_head(maps).shape == (1, 150, 16, 16)
            assert model.auxiliary_head(maps).shape[1] == 150
        elif host == 'mmdet':
            assert [x.shape[-1] for x in maps] == [16, 8, 4, 2, 1]
            assert weights['prefix'] == 'backbone.'
        else:
            classes = config.model.head.num_classes
            assert model.head(maps).shape == (1, classes)


@pytest.mark.parametrize(
    ('name', 'rate'), [('my_detector.py', 1e-4), ('my_segmentor.py', 6e-5)]
)
def test_config_carries_the_recipe(name, rate, folder):
    pytest.importorskip(HOSTS[name], reason=f'{HOSTS[name]} is not installed')
    config = Config.fromfile(folder / name)
    assert config.model.backbone.init_cfg.type == 'Pretrained'
    assert config.optim_wrapper.optimizer.type == 'AdamW'
    assert config.optim_wrapper.optimizer.lr == rate
    assert config.optim_wrapper.paramwise_cfg.norm_decay_mult == 0
    assert all(s.get('eta_min', 0) < rate for s in config.param_scheduler)


@pytest.mark.parametrize('name', PRINTING)
def test_python_prints_what_is_shown(name, run):
    if name == 'export_model.py':
        for package in ('onnxscript', 'onnxruntime'):
            pytest.importorskip(package, reason=f'{package} is not installed')
    line = run(name)[-1]
    assert f'\n    {line}\n' in (ROOT / PRINTING[name]).read_text()


def test_changed_blocks_differ_as_shown(folder):
    names = runpy.run_path(str(folder / 'changed_model.py'))
    changed, last = (names['model'].stages[i][-1] for i in (0, 3))
    last.register_forward_hook(print)
    page = (ROOT / 'docs' / 'configs.md').read_text()
    for block, shape in ((changed, (1, 48, 56, 56)), (last, (1, 384, 7, 7))):
        why = difference(block, torch.zeros(shape))
        assert f'not the fused kernels: {why}\n' in page


@pytest.fixture
def parts(folder, monkeypatch):
    """The configured backbone of docs/configs.md, and its module."""
    pytest.importorskip('mmseg', reason='mmseg is not installed')
    monkeypatch.syspath_prepend(folder)
    config = Config.fromfile(folder / 'my_parts_config.py').model.backbone
    weights = EfficientVMamba('tiny').state_dict()
    file = folder / 'released.pth'
    torch.save({f'backbone.{k}': x for k, x in weights.items()}, file)
    config.init_cfg.checkpoint = str(file)
    model = MODELS.build(config)
    yield model, sys.modules.pop('my_parts'), weights
    MODELS.module_dict.pop('ConvStemVMamba')
    HOOKS.module_dict.pop('MeanDeltaHook')
    stages.BLOCKS.pop('weighted')


def test_parts_of_ones_own_take_effect(parts, monkeypatch):
    model, module, weights = parts
    model.init_weights()
    for name in ('stages.0.1.mixer.A_logs', 'stages.3.0.se.conv_expand.bias'):
        assert torch.equal(model.state_dict()[name], weights[name])
    scan, found, logged = map_scan.selective_scan, [], {}

    def watched(u, delta, A, B, C, D, bias, *rest, **named):
        found.append(softplus(delta + bias[:, None]).mean().item())
        return scan(u, delta, A, B, C, D, bias, *rest, **named)

    monkeypatch.setattr(map_scan, 'selective_scan', watched)
    hub = SimpleNamespace(update_scalar=logged.__setitem__)
    runner = SimpleNamespace(model=model, message_hub=hub)
    module.MeanDeltaHook().before_train(runner)
    maps = model.train()(torch.rand(2, 3, 64, 64))
    assert [x.shape[1:] for x in maps[:2]] == [(48, 16, 16), (96, 8, 8)]
    assert [*logged.values()] == pytest.approx(found)
    assert [*logged][0] == 'train/delta.stages.0.0.mixer'
    mixer, u = model.stages[0][0].mixer, torch.randn(1, 5, 3, 96)
    y = mixer.scan(u)
    mixer.group_weight.data[1, 0] = 3
    expected = y.clone()
    expected[:, 1::2, ::2] *= 3
    torch.testing.assert_close(mixer.scan(u), expected)


def test_detectors_predict_as_the_page_says(folder, run):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    script = BLOCKS['fused_detector.py'].text
    config, checkpoint, _ = re.findall(r"'(\S+/\S+)'", script)
    config = Config.fromfile(ROOT / config)
    config.model.test_cfg.rcnn.score_thr = 0
    (folder / 'any_score.py').write_text(config.pretty_text)
    (folder / 'fused_detector.py').write_text(
        re.sub(r"'configs/\S+\.py'", "'any_score.py'", script)
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        weights = MODELS.build(config.model).state_dict()
    (folder / checkpoint).parent.mkdir(parents=True)
    meta = dict(dataset_meta=dict(classes=('nucleus',)))
    torch.save(dict(state_dict=weights, meta=meta), folder / checkpoint)
    plain, fused = run('fused_detector.py')[-2:]
    assert float(plain) > 0
    assert float(fused) == pytest.approx(float(plain), rel=1e-3)
    predictions, maps = run('predict_images.py')[-2:]
    assert predictions.startswith('dict_keys([')
    assert maps.startswith('[(1, ')


@pytest.mark.parametrize(('arguments', 'shown'), list(shown_commands()))
def test_command_prints_what_is_shown(arguments, shown, folder, run):
    for host in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(host, reason=f'{host} is not installed')
    if 'convert_checkpoint' in arguments[0]:
        weights = released_like(EfficientVMamba('tiny'))
        weights['classifier.head.weight'] = torch.zeros(1000, 384)
        weights['classifier.head.bias'] = torch.zeros(1000)
        torch.save(dict(state_dict=weights), folder / arguments[1])
    printed = run(*arguments)
    if shown[-1] == '...':
        shown = shown[:-1]
        printed = printed[: len(shown)]
    assert printed == shown
