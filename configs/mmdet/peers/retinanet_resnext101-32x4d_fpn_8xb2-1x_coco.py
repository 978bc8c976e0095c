_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/retinanet_8xb2-1x_coco.py',
]

model = dict(
    backbone=dict(
        type='ResNeXt',
        depth=101,
        groups=32,
        base_width=4,
        init_cfg=dict(
            type='Pretrained', checkpoint='open-mmlab://resnext101_32x4d'
        ),
    )
)
