_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/retinanet_8xb2-1x_coco.py',
]

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
    )
)
