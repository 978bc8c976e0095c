"""Objects that no anchor belongs to, and what that costs a detector."""

import importlib
import json

import pytest

from ..tools.test_train_test import TOOLS

CONFIG = """
_base_ = 'mmdet::{base}'
data = dict(
    _delete_=True,
    type='{kind}',
    data_root='{root}/',
    ann_file='labels.json',
    data_prefix=dict(img=''),
    metainfo=dict(classes={classes}),
    pipeline=[dict(type='RandomFlip', prob=1.0)],
)
train_dataloader = dict(dataset=data)
resize = dict(type='mmdet.Resize', scale={side}, keep_ratio=True)
test_dataloader = dict(dataset=dict(pipeline=[resize]))
"""
MASK_RCNN = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco.py'


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """What a config with these settings prints: the status, the line."""
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    monkeypatch.syspath_prepend(TOOLS / 'paper')
    tool = importlib.import_module('anchor_ceiling')
    boxes = [[10, 10, 64, 64], [101, 102, 8, 8]]
    labels = dict(
        images=[dict(id=0, file_name='0.png', width=128, height=128)],
        categories=[dict(id=1, name='large'), dict(id=2, name='small')],
        annotations=[
            dict(
                id=i + 1,
                image_id=0,
                category_id=i + 1,
                bbox=box,
                area=box[2] * box[3],
                iscrowd=0,
            )
            for i, box in enumerate(boxes)
        ],
    )
    (tmp_path / 'labels.json').write_text(json.dumps(labels))

    def printed(
        base, side=128, classes=('large', 'small'), kind='CocoDataset'
    ):
        config = tmp_path / 'config.py'
        config.write_text(
            CONFIG.format(
                base=base, root=tmp_path, side=side, classes=classes, kind=kind
            )
        )
        status = tool.main([str(config)])
        out, err = capsys.readouterr()
        return status, (out + err).partition('config.py: ')[2]

    return printed


def anchors_for(owned, every, ap50):
    return (
        0,
        f'anchors for {owned} of {every} objects, AP50 {ap50} with exactly '
        'these\n',
    )


@pytest.mark.parametrize(
    ('base', 'settings', 'owned', 'every', 'ap50'),
    [
        (MASK_RCNN, dict(), 1, 2, '50.0%'),
        (MASK_RCNN, dict(side=512), 2, 2, '100.0%'),
        (MASK_RCNN, dict(classes=('large',)), 1, 1, '100.0%'),
        (RETINANET, dict(), 2, 2, '100.0%'),
    ],
    ids=['left out', 'enlarged', 'of one class', 'best anchor'],
)
def test_objects_are_counted(run, base, settings, owned, every, ap50):
    assert run(base, **settings) == anchors_for(owned, every, ap50)


@pytest.mark.parametrize(
    ('base', 'settings', 'said'),
    [
        (
            'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
            *({}, 'RetinaSepBNHead, SSDHead, got FCOSHead'),
        ),
        ('paa/paa_r50_fpn_1x_coco.py', {}, 'got PAAHead'),
        (
            'guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py',
            *({}, 'got GARetinaHead'),
        ),
        (RETINANET, dict(kind='VOCDataset'), 'must be CocoDataset'),
        (RETINANET, dict(classes=('none',)), 'have no object'),
    ],
    ids=['no anchors', 'more', 'own anchors', 'other data', 'no object'],
)
def test_other_configs_end_in_a_line(run, base, settings, said):
    status, line = run(base, **settings)
    assert status == 2
    assert said in line and line.count('\n') == 1
