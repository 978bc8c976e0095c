"""Objects that no anchor belongs to, and what that costs a detector."""

import importlib
import json

import pytest
from PIL import Image

from ..tools.test_train_test import TOOLS

CONFIG = """
_base_ = 'mmdet::{base}'
data = dict(
    type='CocoDataset',
    data_root='{root}/',
    ann_file='labels.json',
    data_prefix=dict(img=''),
    metainfo=dict(classes=('large', 'small')),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=({side}, {side})),
        dict(type='PackDetInputs'),
    ],
)
train_dataloader = dict(dataset=dict(_delete_=True, **data))
"""


@pytest.fixture
def line(monkeypatch, tmp_path, capsys):
    """What is printed for a base, and a side to resize 128 pixels to."""
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    monkeypatch.syspath_prepend(TOOLS / 'paper')
    tool = importlib.import_module('anchor_ceiling')
    Image.new('RGB', (128, 128)).save(tmp_path / '0.png')
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

    def printed(base, side):
        config = tmp_path / 'config.py'
        config.write_text(CONFIG.format(base=base, root=tmp_path, side=side))
        assert tool.main([str(config)]) == 0
        return capsys.readouterr().out.partition(': ')[2]

    return printed


def test_rpn_leaves_out_what_is_much_smaller_than_its_anchors(line):
    base = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    assert line(base, 128) == (
        'anchors have 1 of 2 objects, AP50 at most 50.0%\n'
    )
    assert line(base, 512) == (
        'anchors have 2 of 2 objects, AP50 at most 100.0%\n'
    )


def test_a_detector_with_the_best_anchor_of_each_has_all(line):
    base = 'retinanet/retinanet_r50_fpn_1x_coco.py'
    assert line(base, 128) == (
        'anchors have 2 of 2 objects, AP50 at most 100.0%\n'
    )
