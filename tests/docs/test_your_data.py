"""docs/your_data.md, followed to the letter on a few images."""

import json
import re
import shlex

import pytest
import torch
from PIL import Image

from evmamba_mm import ARCHS, EfficientVMamba

from ..test_checkpoint import released_like
from .follow import ROOT, Workplace
from .page import read_blocks
from .shorter import shorter

PAGE = ROOT / 'docs' / 'your_data.md'
RELEASED = 'efficient_vmamba_tiny.ckpt'
CONVERTED = 'checkpoints/evmamba-tiny_in1k.pth'
STEM = 'backbone.patch_embed.conv.weight'

# What the page says of a mistake, and commands that make it.
TRAIN = 'tools/train.py my_detector.py'
SEGMENT = 'tools/train.py my_segmentor.py'
LOAD = 'model.backbone.init_cfg.checkpoint'
MISTAKES = [
    (
        'does not hold the weights of this EfficientVMamba',
        TRAIN,
        'model.backbone.init_cfg.prefix=encoder.',
    ),
    ('take a checkpoint of arch', TRAIN, 'model.backbone.arch=small'),
    (
        '(48, 3, 4, 4) instead of (48, 1, 4, 4)',
        'tools/train.py my_grey.py',
        f'{LOAD}={CONVERTED}',
    ),
    (
        'to have 256 channels, but got 48 channels instead',
        TRAIN,
        'model.neck.in_channels=[256,512,1024,2048]',
    ),
    (
        'and the data set of train_dataloader has',
        TRAIN,
        'model.roi_head.bbox_head.num_classes=80',
    ),
    (
        'give names that are in the file',
        TRAIN,
        'train_dataloader.dataset.metainfo.classes=[nucleus,cell] '
        'model.roi_head.bbox_head.num_classes=2 '
        'model.roi_head.mask_head.num_classes=2',
    ),
    (
        'need at least one array to concatenate',
        TRAIN,
        'train_dataloader.dataset.metainfo.classes=[cell]',
    ),
    (
        'need at least one array to concatenate',
        SEGMENT,
        'train_dataloader.dataset.img_suffix=.tif',
    ),
    (
        'which is no class',
        SEGMENT,
        'train_dataloader.dataset.data_prefix.seg_map_path=segmaps/bad',
    ),
    (
        'self.prior_generator.num_levels',
        'tools/train.py my_neck.py',
        'model.rpn_head.anchor_generator.strides=[4,8,16,32,64]',
    ),
    (
        'does not fit the model of the config',
        'tools/test.py my_detector.py work_dirs/my_neck/epoch_1.pth',
        'work_dir=work_dirs/mistakes',
    ),
    ('runs on an accelerator only', f'{TRAIN} --amp', 'work_dir=mistakes'),
]


@pytest.fixture(scope='module')
def workplace(tmp_path_factory, warm_python):
    for name in ('mmdet', 'mmseg', 'mim'):
        pytest.importorskip(name, reason=f'{name} is not installed')
    place = Workplace(tmp_path_factory.mktemp('page'), warm_python)
    torch.manual_seed(0)
    weights = released_like(EfficientVMamba('tiny'))
    weights['classifier.head.weight'] = torch.randn(1000, 384)
    weights['classifier.head.bias'] = torch.zeros(1000)
    torch.save(dict(state_dict=weights), place.folder / RELEASED)
    return place


@pytest.fixture(scope='module')
def outputs(workplace):
    """What each bash block printed, by its text, after all have run."""
    printed = {}
    for block in read_blocks(PAGE):
        if block.language == 'python':
            (workplace.folder / block.file_name).write_text(block.text)
            continue
        assert block.language == 'bash', f'line {block.line}'
        status, output = workplace.run(block.text)
        assert status == 0, f'line {block.line}:\n{output}'
        if 'data/mine' in block.text and not printed:
            keep_few(workplace.folder / 'data' / 'mine', train=4, val=2)
        printed[block.text] = output
    return printed


def keep_few(folder, **counts):
    """Leaves so many images of each split, and maps of an unknown class."""
    for split, count in counts.items():
        path = folder / 'annotations' / f'instances_{split}.json'
        content = json.loads(path.read_text())
        kept = content['images'][:count]
        numbers = {image['id'] for image in kept}
        content['images'] = kept
        content['annotations'] = [
            a for a in content['annotations'] if a['image_id'] in numbers
        ]
        path.write_text(json.dumps(content))
        stems = {image['file_name'].partition('.')[0] for image in kept}
        for file in folder.glob(f'*/{split}/*'):
            if file.stem not in stems:
                file.unlink()
    (folder / 'segmaps' / 'bad').mkdir()
    for file in (folder / 'segmaps' / 'train').iterdir():
        bad = Image.new('L', (256, 256), 7)
        bad.save(folder / 'segmaps' / 'bad' / file.name)


def output_of(outputs, part):
    (found,) = (text for command, text in outputs.items() if part in command)
    return found


def weights_of(workplace, name):
    path = workplace.folder / name
    return torch.load(path, weights_only=False)['state_dict']


def test_every_file_of_the_layout_is_there(workplace, outputs):
    indented = re.findall(
        r'^ {8}([\w/]+\.(?:json|jpg|png))', PAGE.read_text(), re.MULTILINE
    )
    assert len(indented) == 8
    for path in indented:
        assert (workplace.folder / 'data' / 'mine' / path).is_file(), path


def test_training_starts_from_the_converted_weights(workplace, outputs):
    converted = weights_of(workplace, CONVERTED)
    trained = weights_of(workplace, 'work_dirs/my_detector/epoch_1.pth')
    close = dict(atol=1e-4, rtol=0)
    torch.testing.assert_close(trained[STEM], converted[STEM], **close)
    assert not torch.equal(trained[STEM], converted[STEM])


def test_resumed_training_goes_on(workplace, outputs):
    assert 'resumed epoch: 1' in output_of(outputs, '--resume')
    last = workplace.folder / 'work_dirs' / 'my_detector' / 'last_checkpoint'
    assert last.read_text().endswith('epoch_2.pth')


@pytest.mark.parametrize(
    'name, score', [('my_detector', 'coco/segm_mAP'), ('my_segmentor', 'mIoU')]
)
def test_scores_and_pictures_are_there(name, score, workplace, outputs):
    assert score in output_of(outputs, f'tools/test.py {name}.py')
    pictures = workplace.folder / 'work_dirs' / 'predictions' / name
    assert len([p for p in pictures.rglob('*') if p.is_file()]) == 2


def test_another_project_gets_the_standard_width(workplace, outputs):
    weights = weights_of(workplace, 'work_dirs/elsewhere/epoch_1.pth')
    assert weights['neck.fpn_convs.0.conv.weight'].shape[0] == 256
    converted = weights_of(workplace, CONVERTED)
    close = dict(atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[STEM], converted[STEM], **close)


def test_frozen_stage_stays(workplace, outputs):
    converted = weights_of(workplace, CONVERTED)
    trained = weights_of(workplace, 'work_dirs/my_neck/epoch_1.pth')
    moved = {
        '.'.join(key.split('.')[:3])
        for key, value in trained.items()
        if key in converted and not torch.equal(value, converted[key])
    }
    assert 'backbone.stages.1' in moved
    assert not moved & {'backbone.patch_embed.conv', 'backbone.stages.0'}


def test_own_neck_feeds_another_detector(workplace, outputs):
    assert 'coco/bbox_mAP' in output_of(outputs, 'my_fcos.py')
    weights = weights_of(workplace, 'work_dirs/my_fcos/epoch_1.pth')
    heads = {key.partition('.')[0] for key in weights}
    assert heads == {'backbone', 'neck', 'bbox_head'}
    assert weights['neck.lateral.0.weight'].shape == (128, 96, 1, 1)
    converted = weights_of(workplace, CONVERTED)
    close = dict(atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[STEM], converted[STEM], **close)


def test_grey_stem_answers_as_three_equal_channels(workplace, outputs):
    images = torch.rand(1, 1, 32, 32)
    results = []
    for name, channels in (('in1k', 3), ('grey', 1)):
        backbone = EfficientVMamba('tiny', in_channels=channels).eval()
        stored = weights_of(workplace, f'checkpoints/evmamba-tiny_{name}.pth')
        prefix = 'backbone.'
        backbone.load_state_dict(
            {
                key.removeprefix(prefix): value
                for key, value in stored.items()
                if key.startswith(prefix)
            }
        )
        with torch.no_grad():
            (result,) = backbone(images.expand(-1, channels, -1, -1))
        results.append(result)
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def test_widths_are_those_of_the_variants():
    rows = re.findall(
        r'^\| (\d) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$',
        PAGE.read_text(),
        re.MULTILINE,
    )
    for index, row in enumerate(rows):
        sizes = [ARCHS[name].channels[index] for name in ARCHS][1:]
        assert [int(cell) for cell in row] == [index, 4 << index, *sizes]
    assert len(rows) == 4
    assert list(ARCHS)[1:] == ['tiny', 'small', 'base']


@pytest.mark.parametrize(
    'message, command, options',
    MISTAKES,
    ids=[f'{m[0]}-{m[2].split("=")[0]}' for m in MISTAKES],
)
def test_mistake_is_told_so(message, command, options, workplace, outputs):
    # After the options that shorten, so that the mistake is the last word.
    words = [*command.split(), *shorter(command.split()), *options.split()]
    status, output = workplace.run(f'warm {shlex.join(words)}')
    assert status != 0
    assert message in output[-3000:], output[-3000:]


def test_every_mistake_of_the_page_is_made():
    section = PAGE.read_text().partition('## 8.')[2]
    told = re.findall(r'\| `([^`]+)` \|$', section, re.MULTILINE)
    assert set(told) == {message for message, _, _ in MISTAKES}
