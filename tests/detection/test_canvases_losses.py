"""Padding to a canvas adds no anchor to the losses of a detector."""

import math

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData

from evmamba_mm import BatchCanvasPad

from ..configs.leaves import load

SIZE, CANVAS = (96, 128), (96, 160)
SMALL = (64, 96)
HEADS = {
    'retinanet_evmamba-tiny_fpn_8xb2-1x_coco': 'bbox_head',
    'mask-rcnn_evmamba-tiny_fpn_8xb2-amp-1x_coco': 'rpn_head',
}


@pytest.fixture(params=HEADS)
def head(request):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    config = load(request.param)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
        yield getattr(model, HEADS[request.param])


def instances():
    boxes = [[8.0, 8.0, 60.0, 50.0], [20.0, 30.0, 90.0, 62.0]]
    return InstanceData(
        bboxes=torch.tensor(boxes), labels=torch.zeros(2, dtype=torch.long)
    )


def padded_metas(pad):
    """Metainfo of a batch of two images of which one is smaller."""
    samples = [
        BaseDataElement(
            metainfo=dict(
                img_shape=shape, pad_shape=shape, batch_input_shape=SIZE
            )
        )
        for shape in (SIZE, SMALL)
    ]
    images = torch.zeros(2, 3, *SIZE)
    if pad is not None:
        images, samples = pad(images, samples)
    return images.shape[-2:], [sample.metainfo for sample in samples]


def noise(head, size, inner=None):
    """Scores and boxes of each level, with others of a smaller map inside."""
    anchors = head.num_base_priors
    made = ([], [])
    for level, (stride, _) in enumerate(head.prior_generator.strides):
        h, w = (math.ceil(x / stride) for x in size)
        for maps, channels in zip(
            made, (anchors * head.cls_out_channels, anchors * 4), strict=True
        ):
            x = torch.randn(2, channels, h, w)
            if inner is not None:
                small = inner[maps is made[1]][level]
                x[..., : small.shape[-2], : small.shape[-1]] = small
            maps.append(x)
    return made


def test_losses_are_the_same(head):
    torch.manual_seed(0)
    small = noise(head, SIZE)
    large = noise(head, CANVAS, small)
    found = []
    for maps, pad in ((small, None), (large, BatchCanvasPad([CANVAS]))):
        size, metas = padded_metas(pad)
        assert size == (SIZE if pad is None else CANVAS)
        torch.manual_seed(1)
        losses = head.loss_by_feat(*maps, [instances(), instances()], metas)
        found.append({k: sum(v) for k, v in losses.items()})
    assert all(loss > 0 for loss in found[0].values())
    torch.testing.assert_close(found[1], found[0])
