"""Stock detectors of mmdet train and predict with the served ops."""

from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import DefaultScope

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
PATHS = {
    'mask-rcnn': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'retinanet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
}


def build(name):
    """The config's detector, narrow, with a ResNet-18 of random weights."""
    model = Config.fromfile(CONFIGS / PATHS[name]).model
    model.backbone.update(depth=18, init_cfg=None, frozen_stages=-1)
    model.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    if 'rpn' in model.test_cfg:
        model.rpn_head.update(in_channels=32, feat_channels=32)
        heads = model.roi_head
        for part in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
            part.out_channels = 32
        heads.bbox_head.update(in_channels=32, fc_out_channels=32)
        heads.mask_head.update(in_channels=32, conv_out_channels=32)
        model.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=50)
        model.test_cfg.rpn.update(nms_pre=200, max_per_img=10)
        model.train_cfg.rcnn.sampler.num = 16
        # An untrained detector is sure of nothing.
        model.test_cfg.rcnn.score_thr = 0.0
    else:
        model.bbox_head.update(in_channels=32, feat_channels=32)
        model.test_cfg.update(nms_pre=200, score_thr=0.0)
    model.test_cfg.setdefault('max_per_img', 20)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(model)


@pytest.fixture(params=PATHS)
def detector(request, device):
    return request.param, build(request.param).to(device)


@pytest.mark.parametrize('bfloat16', [False, True], ids=['fp32', 'bf16'])
def test_loss_backward_and_predict(detector, device, bfloat16):
    name, model = detector
    # Of one pixel in bf16 torch's convolution of stride 2 gives gradients from
    # memory that it has not written; the smallest level has four here.
    data = demo_mm_inputs(
        2, [[3, 64, 128], [3, 128, 64]], num_items=[3, 0], with_mask=True
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        losses = model(**model.data_preprocessor(data, True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    grads = {key: p.grad for key, p in model.named_parameters()}
    assert [key for key, grad in grads.items() if grad is None] == []
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads['backbone.conv1.weight'].abs().sum() > 0
    model.eval()
    data = demo_mm_inputs(1, [[3, 32, 64]], num_items=[3], with_mask=True)
    with (
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=bfloat16),
    ):
        data = model.data_preprocessor(data, False)
        found = model(**data, mode='predict')[0].pred_instances
    assert len(found) > 0
    assert found.bboxes.isfinite().all()
    assert ('masks' in found) == (name == 'mask-rcnn')
