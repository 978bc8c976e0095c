_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/retinanet_8xb2-1x_coco.py',
]

checkpoint = (
    'https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
