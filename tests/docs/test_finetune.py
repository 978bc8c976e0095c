"""docs/finetune.md, followed to the letter on small data."""

import importlib
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from PIL import Image

from evmamba_mm.apis import convert_checkpoint

from ..hub.released_files import save_released
from ..tools.test_dataset_converters import write_stage1_train, write_voc
from .follow import ROOT, Workplace
from .page import read_blocks

PAGE = ROOT / 'docs' / 'finetune.md'
BLOCKS = read_blocks(PAGE)
FILES = {b.file_name: b.text for b in BLOCKS if b.language == 'python'}
COMMANDS = [b for b in BLOCKS if b.language == 'bash']
WEIGHTS = 'checkpoints/evmamba-tiny_in1k.pth'
STEM = 'backbone.patch_embed.conv.weight'
LOGGERS = {
    'tensorboard': 'TensorboardVisBackend',
    'mlflow': 'MLflowVisBackend',
    'wandb': 'WandbVisBackend',
}
# What else the page says its `model` is right for, and four-level ones.
DENSE = {
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'gfl': 'gfl/gfl_r50_fpn_1x_coco.py',
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'tood': 'tood/tood_r50_fpn_1x_coco.py',
}
TWO_STAGE = {
    'faster_rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
}


def block_with(part):
    (found,) = (block for block in COMMANDS if part in block.text)
    return found


@pytest.fixture(scope='module')
def place(tmp_path_factory, warm_python):
    for name in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    place = Workplace(tmp_path_factory.mktemp('finetune'), warm_python)
    folder = place.folder
    for name, text in FILES.items():
        (folder / name).write_text(text)
    save_released(folder / 'released.ckpt', 'tiny', 1000)
    convert_checkpoint(folder / 'released.ckpt', folder / WEIGHTS)
    return place


def follow(place, block):
    status, output = place.run(block.text)
    assert status == 0, f'line {block.line}:\n{output[-4000:]}'
    return output


def trained(place, name):
    """The stem's weights after a training, and before."""
    work = place.folder / 'work_dirs' / name
    last = (work / 'last_checkpoint').read_text()
    after = torch.load(last, weights_only=False)['state_dict'][STEM]
    before = torch.load(place.folder / WEIGHTS, weights_only=True)[
        'state_dict'
    ][STEM]
    return after, before


@pytest.fixture(scope='module')
def cells(place):
    """The classifier's data by the page's command, then few of them."""
    follow(place, block_with('cp -r configs/demo/cells'))
    root = place.folder / 'data' / 'cells'
    for folder in root.glob('*/*'):
        for file in sorted(folder.iterdir())[4:]:
            file.unlink()
    return root


def test_a_classifier_learns_from_the_weights(place, cells):
    output = follow(place, block_with('train.py my_classifier.py'))
    assert 'accuracy/top1' in output
    after, before = trained(place, 'my_classifier')
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    'change, said',
    [
        (('head=dict(num_classes=classes)', 'head=dict()'), 'set both to'),
        (
            ('classes, epochs = 3, 20', 'classes, epochs = 2, 1'),
            'and the data set of train_dataloader has 3',
        ),
    ],
    ids=['head', 'both'],
)
def test_numbers_of_classes_that_do_not_fit(place, cells, change, said):
    text = FILES['my_classifier.py']
    assert change[0] in text
    (place.folder / 'wrong.py').write_text(text.replace(*change))
    status, output = place.run('python tools/train.py wrong.py')
    assert status != 0
    assert said in output[-3000:]


def test_a_preprocessor_inside_of_the_model_is_warned_of(place, cells):
    text = FILES['my_classifier.py']
    line = 'data_preprocessor = dict(num_classes=classes)\n'
    inside = text.replace(line, '').replace(
        'model = dict(', 'model = dict(data_preprocessor=dict(num_classes=3),'
    )
    (place.folder / 'wrong.py').write_text(inside)
    status, output = place.run('python tools/train.py wrong.py')
    assert 'images are not normalised' in output


def test_a_detector_learns_from_voc_files(place):
    write_voc(place.folder / 'data' / 'BCCD_Dataset' / 'BCCD')
    # There is no network here.
    git = place.folder / 'bin' / 'git'
    git.write_text('#!/bin/sh\ntest "$1" = clone\n')
    git.chmod(0o755)
    output = follow(place, block_with('git clone'))
    assert "classes = ('RBC', 'WBC', 'Platelets')" in output
    output = follow(place, block_with('train.py my_retinanet.py'))
    assert 'coco/bbox_mAP' in output
    after, before = trained(place, 'my_retinanet')
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)


def test_a_folder_of_masks_is_converted(place):
    write_stage1_train(place.folder / 'data' / 'stage1_train')
    follow(place, block_with('instance_masks.py'))
    root = place.folder / 'data' / 'nuclei'
    demo = ROOT / 'configs' / 'demo' / 'nuclei'
    layout = {p.relative_to(demo) for p in demo.glob('*/*') if p.is_dir()}
    assert layout == {
        p.relative_to(root) for p in root.glob('*/*') if p.is_dir()
    }
    path = 'annotations/instances_train.json'
    for place_ in (root, demo):
        (only,) = json.loads((place_ / path).read_text())['categories']
        assert only == dict(id=1, name='nucleus')


def unpack_camvid(data_dir, target):
    """Four images to train with and two to test, of camvid.tar."""
    counts = dict(train=4, val=2)
    with tarfile.open(data_dir / 'camvid.tar') as archive:
        names = archive.getnames()
        for split, count in counts.items():
            images = [n for n in names if f'images/{split}/' in n]
            for name in sorted(images)[:count]:
                label = name.replace('images', 'annotations')
                label = label.replace('.jpg', '.png')
                for member in (name, label):
                    path = target / member[member.rindex('camvid/') + 7 :]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())


def test_a_segmentor_learns_from_maps(place, data_dir):
    unpack_camvid(data_dir, place.folder / 'data' / 'camvid')
    output = follow(place, block_with('ignore_void.py'))
    assert 'mIoU' in output
    weights, before = trained(place, 'my_upernet')
    torch.testing.assert_close(weights, before, atol=1e-3, rtol=0)
    maps = place.folder / 'data/camvid/annotations'
    values = {
        int(value)
        for path in maps.rglob('*.png')
        for value in np.unique(Image.open(path))
    }
    assert values <= {*range(11), 255}


def loss_of_a_step(model, data):
    """Trains a step; returns the parameters of the backbone it misses."""
    data = model.data_preprocessor(data, True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    return [
        name
        for name, p in model.backbone.named_parameters()
        if p.requires_grad and p.grad is None
    ]


def build(place, name, host):
    """The model of a config of the page, without its weights."""
    from mmengine.registry import MODELS

    model = Config.fromfile(place.folder / name).model
    assert model.backbone.init_cfg.checkpoint == WEIGHTS
    for head in {'decode_head', 'auxiliary_head'} & set(model):
        model[head].channels = 16
    model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(host):
        return MODELS.build(model)


@pytest.mark.parametrize('name', ['atss', *DENSE, *TWO_STAGE])
def test_a_detector_by_its_name(place, name):
    from mmdet.testing import demo_mm_inputs

    text = FILES['my_atss.py']
    others = DENSE | TWO_STAGE
    if name in others:
        text = text.replace('atss/atss_r50_fpn_1x_coco.py', others[name])
    if name in TWO_STAGE:
        for old, new in (
            ('(1, 2, 3)', '(0, 1, 2, 3)'),
            ('[96, 192, 384]', '[48, 96, 192, 384]'),
        ):
            assert old in text
            assert new in PAGE.read_text()
            text = text.replace(old, new)
    assert f'`{name}`' in PAGE.read_text()
    (place.folder / 'by_name.py').write_text(text)
    model = build(place, 'by_name.py', 'mmdet')
    # TOOD's assigner changes after some epochs.
    MessageHub.get_current_instance().update_info('epoch', 0)
    data = demo_mm_inputs(1, [[3, 64, 96]], num_items=[3], with_mask=True)
    assert loss_of_a_step(model, data) == []


def test_a_head_of_mmseg_by_its_name(place):
    from mmengine.model import revert_sync_batchnorm
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = revert_sync_batchnorm(build(place, 'my_fcn.py', 'mmseg'))
    sample = SegDataSample(metainfo=dict(img_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 64, 64).long())
    images = [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2
    data = dict(inputs=images, data_samples=[sample] * 2)
    assert loss_of_a_step(model, data) == []


def test_layer_decay_trains(place, cells):
    output = follow(place, block_with('layer_decay.py'))
    assert 'accuracy/top1' in output


def test_int8_prints_its_errors(place):
    pytest.importorskip('torchao', reason='torchao is not installed')
    status, output = place.run('python int8.py')
    assert status == 0, output
    lines = output.splitlines()
    errors = [re.search(r'differs by (.+)%', x)[1] for x in lines[-2:]]
    assert all(0 < float(error) < 5 for error in errors)


def test_lora_trains_its_additions_and_the_head(place, cells):
    output = follow(place, block_with('lora.py'))
    assert 'accuracy/top1' in output
    last = place.folder / 'work_dirs' / 'lora' / 'last_checkpoint'
    stored = torch.load(last.read_text(), weights_only=False)['state_dict']
    names = [name for name in stored if name.startswith('backbone.')]
    # mmpretrain stores nothing else of the backbone.
    assert len(names) == 16 and all('.lora_' in name for name in names)
    assert any(stored[name].any() for name in names if 'lora_up' in name)
    assert 'head.fc.weight' in stored


def test_loggers_write(place, cells):
    text = FILES['my_logs.py']
    there = []
    for package, kind in LOGGERS.items():
        try:
            importlib.import_module(package)
            there.append(package)
        except ImportError:
            text = re.sub(rf'\n.*{kind}.*', '', text)
    if not there:
        pytest.skip('none of tensorboard, mlflow, wandb is installed')
    (place.folder / 'my_logs.py').write_text(text)
    block = block_with('my_logs.py')
    follow(place, block)
    work = place.folder / 'work_dirs' / 'my_logs'
    if 'tensorboard' in there:
        assert list(work.rglob('events.out.tfevents*'))
    if 'mlflow' in there:
        assert (place.folder / 'mlflow.db').is_file()
    if 'wandb' in there:
        assert list(place.folder.rglob('offline-run-*'))


def test_every_block_is_followed():
    read = Path(__file__).read_text()
    for name in FILES:
        assert name in read or f'train.py {name}' in PAGE.read_text(), name
    for block in COMMANDS:
        parts = re.findall(r"block_with\('(.*?)'\)", read)
        assert any(part in block.text for part in parts), block
