_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/retinanet_8xb2-1x_coco.py',
]

model = dict(
    backbone=dict(
        depth=18,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
